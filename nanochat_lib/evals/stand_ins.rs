// Small stand-ins for the three crates that HumanEval-X Rust imports, so that its problems can be
// judged without a network. They hold what the problems and plausible answers use, no more.

//@ rand
// Version 0.7's interface over xorshift64*. The seed is fixed, so that a verdict can be repeated.
#[allow(dead_code)]
mod rand {
    use std::cell::Cell;

    thread_local!(static STATE: Cell<u64> = Cell::new(0x2545_F491_4F6C_DD1D));

    fn next_bits() -> u64 {
        STATE.with(|state| {
            let mut bits = state.get();
            bits ^= bits >> 12;
            bits ^= bits << 25;
            bits ^= bits >> 27;
            state.set(bits);
            bits.wrapping_mul(0x2545_F491_4F6C_DD1D)
        })
    }

    pub trait Number: Sized {
        fn any(bits: u64) -> Self;
        fn between(low: Self, high: Self, bits: u64) -> Self;
    }

    macro_rules! integers {
        ($($name:ty)*) => {$(
            impl Number for $name {
                fn any(bits: u64) -> Self {
                    (bits >> 8) as $name
                }
                fn between(low: Self, high: Self, bits: u64) -> Self {
                    assert!(low < high, "gen_range: the range is empty");
                    let width = (high as i128 - low as i128) as u128;
                    (low as i128 + (bits as u128 % width) as i128) as $name
                }
            }
        )*};
    }
    integers!(i8 i16 i32 i64 isize u8 u16 u32 u64 usize);

    fn unit(bits: u64) -> f64 {
        (bits >> 11) as f64 / (1u64 << 53) as f64
    }

    impl Number for f64 {
        fn any(bits: u64) -> f64 {
            unit(bits)
        }
        fn between(low: f64, high: f64, bits: u64) -> f64 {
            low + (high - low) * unit(bits)
        }
    }

    impl Number for bool {
        fn any(bits: u64) -> bool {
            bits >> 63 == 1
        }
        fn between(low: bool, _high: bool, _bits: u64) -> bool {
            low
        }
    }

    #[derive(Clone, Debug)]
    pub struct ThreadRng;

    pub trait Rng {
        fn gen<T: Number>(&mut self) -> T {
            T::any(next_bits())
        }
        fn gen_range<T: Number>(&mut self, low: T, high: T) -> T {
            T::between(low, high, next_bits())
        }
        fn gen_bool(&mut self, probability: f64) -> bool {
            unit(next_bits()) < probability
        }
    }

    impl Rng for ThreadRng {}

    pub fn thread_rng() -> ThreadRng {
        ThreadRng
    }

    pub fn random<T: Number>() -> T {
        T::any(next_bits())
    }
}

//@ regex
// A backtracking matcher: literals, classes, groups, alternation, quantifiers, anchors.
#[allow(dead_code)]
mod regex {
    #[derive(Clone, Debug)]
    enum Node {
        One { ranges: Vec<(char, char)>, negated: bool },
        Group(Vec<Vec<Node>>),
        Repeat { item: Vec<Node>, min: usize, max: usize, greedy: bool },
        Start,
        End,
        WordEdge,
    }

    #[derive(Clone, Debug)]
    pub struct Regex {
        pattern: String,
        alternatives: Vec<Vec<Node>>,
    }

    #[derive(Clone, Debug, PartialEq)]
    pub struct Error(String);

    impl std::fmt::Display for Error {
        fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
            f.write_str(&self.0)
        }
    }

    #[derive(Clone, Copy, Debug, PartialEq)]
    pub struct Match<'t> {
        text: &'t str,
        start: usize,
        end: usize,
    }

    impl<'t> Match<'t> {
        pub fn as_str(&self) -> &'t str {
            &self.text[self.start..self.end]
        }
        pub fn start(&self) -> usize {
            self.start
        }
        pub fn end(&self) -> usize {
            self.end
        }
    }

    impl Regex {
        pub fn new(pattern: &str) -> Result<Regex, Error> {
            let mut parser = Parser { symbols: pattern.chars().collect(), at: 0 };
            let alternatives = parser.alternatives()?;
            if parser.at < parser.symbols.len() {
                return Err(Error("unopened group".to_string()));
            }
            Ok(Regex { pattern: pattern.to_string(), alternatives })
        }

        pub fn as_str(&self) -> &str {
            &self.pattern
        }

        pub fn is_match(&self, text: &str) -> bool {
            self.find(text).is_some()
        }

        pub fn find<'t>(&self, text: &'t str) -> Option<Match<'t>> {
            self.find_iter(text).next()
        }

        pub fn find_iter<'t>(&self, text: &'t str) -> std::vec::IntoIter<Match<'t>> {
            let symbols: Vec<char> = text.chars().collect();
            let mut offsets: Vec<usize> = text.char_indices().map(|(i, _)| i).collect();
            offsets.push(text.len());
            let mut found = Vec::new();
            let (mut at, mut last) = (0, None);
            while at <= symbols.len() {
                let mut end = None;
                let hit = self.alternatives.iter().any(|nodes| {
                    matches(nodes, &symbols, at, &mut |stop| {
                        end = Some(stop);
                        true
                    })
                });
                match end {
                    Some(stop) if hit && (stop > at || last != Some(at)) => {
                        found.push(Match { text, start: offsets[at], end: offsets[stop] });
                        (at, last) = (stop.max(at + 1), Some(stop));
                    }
                    _ => at += 1,
                }
            }
            found.into_iter()
        }

        pub fn split<'t>(&self, text: &'t str) -> std::vec::IntoIter<&'t str> {
            let mut pieces = Vec::new();
            let mut start = 0;
            for found in self.find_iter(text) {
                pieces.push(&text[start..found.start]);
                start = found.end;
            }
            pieces.push(&text[start..]);
            pieces.into_iter()
        }

        pub fn replace_all<'t>(&self, text: &'t str, with: &str) -> std::borrow::Cow<'t, str> {
            let pieces: Vec<&str> = self.split(text).collect();
            std::borrow::Cow::Owned(pieces.join(with))
        }
    }

    /// Call `then` with the end of each way to match `nodes` at `at`, until it returns true.
    fn matches(
        nodes: &[Node],
        text: &[char],
        at: usize,
        then: &mut dyn FnMut(usize) -> bool,
    ) -> bool {
        let Some((node, rest)) = nodes.split_first() else {
            return then(at);
        };
        let is_word = |i: usize| i < text.len() && (text[i].is_alphanumeric() || text[i] == '_');
        match node {
            Node::One { ranges, negated } => {
                at < text.len()
                    && ranges.iter().any(|(a, b)| (*a..=*b).contains(&text[at])) != *negated
                    && matches(rest, text, at + 1, then)
            }
            Node::Start => at == 0 && matches(rest, text, at, then),
            Node::End => at == text.len() && matches(rest, text, at, then),
            Node::WordEdge => {
                (at > 0 && is_word(at - 1)) != is_word(at) && matches(rest, text, at, then)
            }
            Node::Group(alternatives) => alternatives.iter().any(|nodes| {
                matches(nodes, text, at, &mut |end| matches(rest, text, end, &mut *then))
            }),
            Node::Repeat { item, min, max, greedy } => {
                let mut more = |then: &mut dyn FnMut(usize) -> bool| {
                    if *max == 0 {
                        return false;
                    }
                    let (min, max) = (min.saturating_sub(1), *max - 1);
                    let next = Node::Repeat { item: item.clone(), min, max, greedy: *greedy };
                    let mut nodes = vec![next];
                    nodes.extend_from_slice(rest);
                    matches(item, text, at, &mut |end| {
                        end > at && matches(&nodes, text, end, &mut *then)
                    })
                };
                if *greedy {
                    more(then) || (*min == 0 && matches(rest, text, at, then))
                } else {
                    (*min == 0 && matches(rest, text, at, then)) || more(then)
                }
            }
        }
    }

    struct Parser {
        symbols: Vec<char>,
        at: usize,
    }

    impl Parser {
        fn peek(&self) -> Option<char> {
            self.symbols.get(self.at).copied()
        }

        fn take(&mut self) -> Result<char, Error> {
            self.at += 1;
            self.symbols.get(self.at - 1).copied().ok_or(Error("pattern ends early".to_string()))
        }

        fn skip(&mut self, symbol: char) -> bool {
            let here = self.peek() == Some(symbol);
            self.at += usize::from(here);
            here
        }

        fn alternatives(&mut self) -> Result<Vec<Vec<Node>>, Error> {
            let mut found = vec![self.sequence()?];
            while self.skip('|') {
                found.push(self.sequence()?);
            }
            Ok(found)
        }

        fn sequence(&mut self) -> Result<Vec<Node>, Error> {
            let mut nodes = Vec::new();
            while let Some(symbol) = self.peek() {
                if symbol == '|' || symbol == ')' {
                    break;
                }
                let node = self.atom()?;
                nodes.push(self.repeated(node)?);
            }
            Ok(nodes)
        }

        fn atom(&mut self) -> Result<Node, Error> {
            Ok(match self.take()? {
                '.' => Node::One { ranges: vec![('\n', '\n')], negated: true },
                '^' => Node::Start,
                '$' => Node::End,
                '[' => self.class()?,
                '(' => {
                    if self.skip('?') && !self.skip(':') {
                        return Err(Error("flags and names of groups are not supported".into()));
                    }
                    let alternatives = self.alternatives()?;
                    if !self.skip(')') {
                        return Err(Error("unclosed group".to_string()));
                    }
                    Node::Group(alternatives)
                }
                '\\' => match self.take()? {
                    'b' => Node::WordEdge,
                    symbol => escaped(symbol),
                },
                '*' | '+' | '?' => return Err(Error("nothing to repeat".to_string())),
                symbol => Node::One { ranges: vec![(symbol, symbol)], negated: false },
            })
        }

        fn class(&mut self) -> Result<Node, Error> {
            let negated = self.skip('^');
            let mut ranges = Vec::new();
            let mut first = true;
            loop {
                let low = match self.take()? {
                    ']' if !first => return Ok(Node::One { ranges, negated }),
                    '\\' => match escaped(self.take()?) {
                        Node::One { ranges: part, negated: false } if part[0].0 == part[0].1 => {
                            part[0].0
                        }
                        Node::One { ranges: part, negated: false } => {
                            ranges.extend(part);
                            first = false;
                            continue;
                        }
                        _ => return Err(Error("negated class inside a class".to_string())),
                    },
                    symbol => symbol,
                };
                first = false;
                let is_range = self.peek() == Some('-')
                    && self.symbols.get(self.at + 1).is_some_and(|next| *next != ']');
                if is_range {
                    self.at += 1;
                    ranges.push((low, self.take()?));
                } else {
                    ranges.push((low, low));
                }
            }
        }

        fn repeated(&mut self, node: Node) -> Result<Node, Error> {
            let (min, max) = match self.peek() {
                Some('*') => (0, usize::MAX),
                Some('+') => (1, usize::MAX),
                Some('?') => (0, 1),
                Some('{') => self.bounds()?,
                _ => return Ok(node),
            };
            self.at += 1;
            let greedy = !self.skip('?');
            Ok(Node::Repeat { item: vec![node], min, max, greedy })
        }

        /// Read `{3}`, `{3,}` or `{3,5}` up to, not including, the closing brace.
        fn bounds(&mut self) -> Result<(usize, usize), Error> {
            let mut text = String::new();
            self.at += 1;
            while self.peek() != Some('}') {
                text.push(self.take()?);
            }
            let (low, high) = text.split_once(',').unwrap_or((&text, &text));
            let number = |part: &str| part.parse().map_err(|_| Error("bad bounds".to_string()));
            let max = if high.is_empty() { usize::MAX } else { number(high)? };
            Ok((number(low)?, max))
        }
    }

    fn escaped(symbol: char) -> Node {
        let word = [('a', 'z'), ('A', 'Z'), ('0', '9'), ('_', '_')];
        let space = [(' ', ' '), ('\t', '\r')];
        let (ranges, negated) = match symbol {
            'd' | 'D' => (vec![('0', '9')], symbol == 'D'),
            'w' | 'W' => (word.to_vec(), symbol == 'W'),
            's' | 'S' => (space.to_vec(), symbol == 'S'),
            'n' => (vec![('\n', '\n')], false),
            't' => (vec![('\t', '\t')], false),
            'r' => (vec![('\r', '\r')], false),
            other => (vec![(other, other)], false),
        };
        Node::One { ranges, negated }
    }
}

//@ md5
// The message digest of RFC 1321.
#[allow(dead_code)]
mod md5 {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Digest(pub [u8; 16]);

    impl std::fmt::LowerHex for Digest {
        fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
            self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
        }
    }

    impl std::ops::Deref for Digest {
        type Target = [u8; 16];
        fn deref(&self) -> &[u8; 16] {
            &self.0
        }
    }

    const SHIFTS: [[u32; 4]; 4] =
        [[7, 12, 17, 22], [5, 9, 14, 20], [4, 11, 16, 23], [6, 10, 15, 21]];

    pub fn compute<T: AsRef<[u8]>>(data: T) -> Digest {
        let data = data.as_ref();
        let mut message = data.to_vec();
        message.push(0x80);
        while message.len() % 64 != 56 {
            message.push(0);
        }
        message.extend_from_slice(&(data.len() as u64 * 8).to_le_bytes());
        let mut state: [u32; 4] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];
        for block in message.chunks(64) {
            mix(&mut state, block);
        }
        let mut digest = [0; 16];
        for (i, word) in state.iter().enumerate() {
            digest[4 * i..4 * i + 4].copy_from_slice(&word.to_le_bytes());
        }
        Digest(digest)
    }

    fn mix(state: &mut [u32; 4], block: &[u8]) {
        let [mut a, mut b, mut c, mut d] = *state;
        for i in 0..64 {
            let (mixed, word) = match i / 16 {
                0 => ((b & c) | (!b & d), i),
                1 => ((d & b) | (!d & c), (5 * i + 1) % 16),
                2 => (b ^ c ^ d, (3 * i + 5) % 16),
                _ => (c ^ (b | !d), 7 * i % 16),
            };
            let bytes = [0, 1, 2, 3].map(|j| block[4 * word + j]);
            let constant = (((i + 1) as f64).sin().abs() * 4_294_967_296.0) as u32;
            let sum = a
                .wrapping_add(mixed)
                .wrapping_add(constant)
                .wrapping_add(u32::from_le_bytes(bytes));
            (a, d, c) = (d, c, b);
            b = b.wrapping_add(sum.rotate_left(SHIFTS[i / 16][i % 4]));
        }
        for (old, new) in state.iter_mut().zip([a, b, c, d]) {
            *old = old.wrapping_add(new);
        }
    }
}
