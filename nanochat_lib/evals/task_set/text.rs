//@ task 021_initials level=1
/// Return the first letters of all words in upper case, e.g. "GBS" for "george bernard shaw".
fn initials(name: &str) -> String {
//@ solution
    name.split_whitespace()
        .filter_map(|word| word.chars().next())
        .map(|letter| letter.to_ascii_uppercase())
        .collect()
}
//@ mutant
    name.split_whitespace().filter_map(|word| word.chars().next()).collect()
}
//@ tests
assert_eq!(initials("george bernard shaw"), "GBS");
assert_eq!(initials(""), "");
assert_eq!(initials("  ada   lovelace "), "AL");
assert_eq!(initials("X"), "X");

//@ task 022_mask_digits level=1
/// Replace every decimal digit of the text by `#`, except the last `keep` digits.
fn mask_digits(text: &str, keep: usize) -> String {
//@ solution
    let n_digits = text.chars().filter(|c| c.is_ascii_digit()).count();
    let mut seen = 0;
    text.chars()
        .map(|c| {
            if c.is_ascii_digit() {
                seen += 1;
                if seen + keep <= n_digits { '#' } else { c }
            } else {
                c
            }
        })
        .collect()
}
//@ mutant
    let mut seen = 0;
    text.chars()
        .map(|c| {
            if c.is_ascii_digit() {
                seen += 1;
                if seen > keep { '#' } else { c }
            } else {
                c
            }
        })
        .collect()
}
//@ tests
assert_eq!(mask_digits("12-34-56", 2), "##-##-56");
assert_eq!(mask_digits("12", 5), "12");
assert_eq!(mask_digits("a1b2", 0), "a#b#");
assert_eq!(mask_digits("", 3), "");

//@ task 023_longest_word level=2
/// Return the longest word of the text, the first one when several are equally long, and an
/// empty text when there is no word. Words are separated by white space.
fn longest_word(text: &str) -> &str {
//@ solution
    let mut longest = "";
    for word in text.split_whitespace() {
        if word.chars().count() > longest.chars().count() {
            longest = word;
        }
    }
    longest
}
//@ mutant
    text.split_whitespace().max_by_key(|word| word.chars().count()).unwrap_or("")
}
//@ tests
assert_eq!(longest_word("a bird in the hand"), "bird");
assert_eq!(longest_word("one two six"), "one");
assert_eq!(longest_word("   "), "");
assert_eq!(longest_word("dog"), "dog");

//@ task 024_is_variable_name level=2
/// Return whether the text is a name in snake case: it is not empty, has only lower-case ASCII
/// letters, digits and underscores, and does not begin with a digit.
fn is_variable_name(text: &str) -> bool {
//@ solution
    let first_is_fine = text.chars().next().is_some_and(|c| !c.is_ascii_digit());
    first_is_fine
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}
//@ mutant
    text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}
//@ tests
assert!(is_variable_name("n_items"));
assert!(is_variable_name("_x2"));
assert!(!is_variable_name("2x"));
assert!(!is_variable_name(""));
assert!(!is_variable_name("Name"));
assert!(!is_variable_name("a b"));

//@ task 025_expand_runs level=3
/// Expand a text in which each letter is followed by one digit that tells how often to write it:
/// "a3b0c1" becomes "aaac". The text is always well formed.
fn expand_runs(text: &str) -> String {
//@ solution
    let symbols: Vec<char> = text.chars().collect();
    let mut expanded = String::new();
    for pair in symbols.chunks(2) {
        let count = pair[1].to_digit(10).unwrap();
        for _ in 0..count {
            expanded.push(pair[0]);
        }
    }
    expanded
}
//@ mutant
    let symbols: Vec<char> = text.chars().collect();
    let mut expanded = String::new();
    for pair in symbols.chunks(2) {
        let count = pair[1].to_digit(10).unwrap();
        for _ in 0..=count {
            expanded.push(pair[0]);
        }
    }
    expanded
}
//@ tests
assert_eq!(expand_runs("a3b0c1"), "aaac");
assert_eq!(expand_runs(""), "");
assert_eq!(expand_runs("x1"), "x");
assert_eq!(expand_runs("z9"), "zzzzzzzzz");

//@ task 026_indent level=2
/// Put `width` spaces in front of every line of the text that is not empty. The lines of the
/// result are separated by single newlines, with no newline at the end.
fn indent(text: &str, width: usize) -> String {
//@ solution
    let padding = " ".repeat(width);
    let lines: Vec<String> = text
        .lines()
        .map(|line| if line.is_empty() { String::new() } else { format!("{padding}{line}") })
        .collect();
    lines.join("\n")
}
//@ mutant
    let padding = " ".repeat(width);
    let lines: Vec<String> = text.lines().map(|line| format!("{padding}{line}")).collect();
    lines.join("\n")
}
//@ tests
assert_eq!(indent("a\nb", 2), "  a\n  b");
assert_eq!(indent("a\n\nb\n", 1), " a\n\n b");
assert_eq!(indent("", 4), "");
assert_eq!(indent("x", 0), "x");

//@ task 027_common_start level=3
/// Return the longest text that both `a` and `b` begin with, as a part of `a`.
fn common_start<'a>(a: &'a str, b: &str) -> &'a str {
//@ solution
    let mut end = 0;
    for (x, y) in a.chars().zip(b.chars()) {
        if x != y {
            break;
        }
        end += x.len_utf8();
    }
    &a[..end]
}
//@ mutant
    let mut end = 0;
    for (x, y) in a.chars().zip(b.chars()) {
        if x == y {
            end += x.len_utf8();
        }
    }
    &a[..end]
}
//@ tests
assert_eq!(common_start("flower", "flow"), "flow");
assert_eq!(common_start("abc", "xbc"), "");
assert_eq!(common_start("", "abc"), "");
assert_eq!(common_start("größe", "große"), "gr");
assert_eq!(common_start("äöx", "äöy"), "äö");

//@ task 028_vowel_groups level=2
/// Count the groups of neighbouring vowels (a, e, i, o, u, in lower case): "queue" has one,
/// "banana" has three.
fn vowel_groups(word: &str) -> usize {
//@ solution
    let mut groups = 0;
    let mut in_group = false;
    for letter in word.chars() {
        let is_vowel = "aeiou".contains(letter);
        if is_vowel && !in_group {
            groups += 1;
        }
        in_group = is_vowel;
    }
    groups
}
//@ mutant
    word.chars().filter(|letter| "aeiou".contains(*letter)).count()
}
//@ tests
assert_eq!(vowel_groups("queue"), 1);
assert_eq!(vowel_groups("banana"), 3);
assert_eq!(vowel_groups(""), 0);
assert_eq!(vowel_groups("rhythm"), 0);
assert_eq!(vowel_groups("audio"), 2);

//@ task 029_mirror_words level=2
/// Write each word backwards but keep the order of the words. Words are separated by exactly one
/// space, in the text as in the result.
fn mirror_words(text: &str) -> String {
//@ solution
    text.split(' ')
        .map(|word| word.chars().rev().collect::<String>())
        .collect::<Vec<_>>()
        .join(" ")
}
//@ mutant
    text.chars().rev().collect()
}
//@ tests
assert_eq!(mirror_words("live on time"), "evil no emit");
assert_eq!(mirror_words("abc"), "cba");
assert_eq!(mirror_words(""), "");
assert_eq!(mirror_words("ab cd"), "ba dc");

//@ task 030_zigzag_case level=3
/// Write the letters of the text alternately in upper and in lower case, beginning with upper
/// case. Other characters stay as they are and do not count.
fn zigzag_case(text: &str) -> String {
//@ solution
    let mut upper = true;
    let mut result = String::new();
    for c in text.chars() {
        if !c.is_ascii_alphabetic() {
            result.push(c);
            continue;
        }
        result.push(if upper { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() });
        upper = !upper;
    }
    result
}
//@ mutant
    text.chars()
        .enumerate()
        .map(|(i, c)| if i % 2 == 0 { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() })
        .collect()
}
//@ tests
assert_eq!(zigzag_case("hello"), "HeLlO");
assert_eq!(zigzag_case("a bc"), "A bC");
assert_eq!(zigzag_case(""), "");
assert_eq!(zigzag_case("1-X-y"), "1-X-y");
assert_eq!(zigzag_case("Rust 2021 ok"), "RuSt 2021 Ok");
