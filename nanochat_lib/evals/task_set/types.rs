//@ task 051_perimeter level=1
enum Shape {
    Square { side: u32 },
    Rectangle { width: u32, height: u32 },
    Triangle(u32, u32, u32),
}

/// Return the length of the shape's outline.
fn perimeter(shape: &Shape) -> u32 {
//@ solution
    match shape {
        Shape::Square { side } => 4 * side,
        Shape::Rectangle { width, height } => 2 * (width + height),
        Shape::Triangle(a, b, c) => a + b + c,
    }
}
//@ mutant
    match shape {
        Shape::Square { side } => side * side,
        Shape::Rectangle { width, height } => width * height,
        Shape::Triangle(a, b, c) => a + b + c,
    }
}
//@ tests
assert_eq!(perimeter(&Shape::Square { side: 3 }), 12);
assert_eq!(perimeter(&Shape::Rectangle { width: 2, height: 5 }), 14);
assert_eq!(perimeter(&Shape::Triangle(3, 4, 5)), 12);
assert_eq!(perimeter(&Shape::Square { side: 0 }), 0);

//@ task 052_next_light level=1
#[derive(Debug, Clone, Copy, PartialEq)]
enum Light {
    Red,
    RedYellow,
    Green,
    Yellow,
}

/// Return the light that follows: red, red with yellow, green, yellow, and red again.
fn next_light(light: Light) -> Light {
//@ solution
    match light {
        Light::Red => Light::RedYellow,
        Light::RedYellow => Light::Green,
        Light::Green => Light::Yellow,
        Light::Yellow => Light::Red,
    }
}
//@ mutant
    match light {
        Light::Red => Light::Green,
        Light::RedYellow => Light::Green,
        Light::Green => Light::Yellow,
        Light::Yellow => Light::Red,
    }
}
//@ tests
assert_eq!(next_light(Light::Red), Light::RedYellow);
assert_eq!(next_light(Light::RedYellow), Light::Green);
assert_eq!(next_light(Light::Green), Light::Yellow);
assert_eq!(next_light(Light::Yellow), Light::Red);

//@ task 053_repeat_call level=2
/// Apply `change` to `start`, then to the result, and so on, `times` times.
fn repeat_call<F>(start: i32, times: usize, change: F) -> i32
where
    F: Fn(i32) -> i32,
{
//@ solution
    let mut value = start;
    for _ in 0..times {
        value = change(value);
    }
    value
}
//@ mutant
    let mut value = start;
    for _ in 0..times {
        value = change(start);
    }
    value
}
//@ tests
assert_eq!(repeat_call(1, 5, |x| x * 2), 32);
assert_eq!(repeat_call(7, 0, |x| x + 1), 7);
assert_eq!(repeat_call(10, 1, |x| x - 3), 7);
assert_eq!(repeat_call(0, 4, |x| 1 - x), 0);

//@ task 054_position_of_largest level=2
/// Return the index of the largest item, the first one when it appears several times.
fn position_of_largest<T: PartialOrd>(items: &[T]) -> Option<usize> {
//@ solution
    let mut best = None;
    for (i, item) in items.iter().enumerate() {
        match best {
            Some(j) if items[j] >= *item => {}
            _ => best = Some(i),
        }
    }
    best
}
//@ mutant
    let mut best = None;
    for (i, item) in items.iter().enumerate() {
        match best {
            Some(j) if items[j] > *item => {}
            _ => best = Some(i),
        }
    }
    best
}
//@ tests
assert_eq!(position_of_largest(&[2, 9, 4]), Some(1));
assert_eq!(position_of_largest(&[1.5, 0.5, 1.5]), Some(0));
assert_eq!(position_of_largest(&["b", "a"]), Some(0));
assert_eq!(position_of_largest::<i32>(&[]), None);

//@ task 055_move_points level=1
#[derive(Debug, Clone, PartialEq)]
struct Point {
    x: i32,
    y: i32,
}

/// Move all points by `dx` to the right and by `dy` upwards, in place.
fn move_points(points: &mut [Point], dx: i32, dy: i32) {
//@ solution
    for point in points.iter_mut() {
        point.x += dx;
        point.y += dy;
    }
}
//@ mutant
    for mut point in points.to_vec() {
        point.x += dx;
        point.y += dy;
    }
}
//@ tests
let mut points = vec![Point { x: 0, y: 0 }, Point { x: 2, y: -3 }];
move_points(&mut points, 1, 5);
assert_eq!(points[0], Point { x: 1, y: 5 });
assert_eq!(points[1], Point { x: 3, y: 2 });
move_points(&mut points, -1, 0);
assert_eq!(points[0], Point { x: 0, y: 5 });
move_points(&mut [], 1, 1);
assert_eq!(points.len(), 2);

//@ task 056_tree_depth level=2
struct Node {
    left: Option<Box<Node>>,
    right: Option<Box<Node>>,
}

/// Return the number of nodes on the longest way down from the root; 0 without a tree.
fn tree_depth(root: &Option<Box<Node>>) -> usize {
//@ solution
    match root {
        None => 0,
        Some(node) => 1 + tree_depth(&node.left).max(tree_depth(&node.right)),
    }
}
//@ mutant
    match root {
        None => 0,
        Some(node) => 1 + tree_depth(&node.left).min(tree_depth(&node.right)),
    }
}
//@ tests
fn node(left: Option<Box<Node>>, right: Option<Box<Node>>) -> Option<Box<Node>> {
    Some(Box::new(Node { left, right }))
}
assert_eq!(tree_depth(&None), 0);
assert_eq!(tree_depth(&node(None, None)), 1);
assert_eq!(tree_depth(&node(node(None, None), None)), 2);
assert_eq!(tree_depth(&node(None, node(node(None, None), None))), 3);

//@ task 057_strip_quotes level=2
/// Remove one pair of double quotes around the text; a text without both quotes stays as it is.
fn strip_quotes(text: &str) -> &str {
//@ solution
    text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text)
}
//@ mutant
    text.trim_matches('"')
}
//@ tests
assert_eq!(strip_quotes("\"hi\""), "hi");
assert_eq!(strip_quotes("\"hi"), "\"hi");
assert_eq!(strip_quotes("\""), "\"");
assert_eq!(strip_quotes("\"\""), "");
assert_eq!(strip_quotes("\"\"x\"\""), "\"x\"");
assert_eq!(strip_quotes("plain"), "plain");

//@ task 058_pipeline level=3
/// Join two functions into one that calls `first` and gives its result to `second`.
fn pipeline<A, B, C>(first: impl Fn(A) -> B, second: impl Fn(B) -> C) -> impl Fn(A) -> C {
//@ solution
    move |input| second(first(input))
}
//@ mutant
    move |input| {
        let middle = first(input);
        let _ = second(middle);
        panic!("no result")
    }
}
//@ tests
assert_eq!(pipeline(|x: i32| x + 1, |x: i32| x * 10)(2), 30);
assert_eq!(pipeline(|x: &str| x.len(), |n: usize| n > 3)("tree"), true);
assert_eq!(pipeline(|x: i32| x, |x: i32| x.to_string())(-4), "-4");
let double = |x: u8| x * 2;
assert_eq!(pipeline(double, double)(5), 20);

//@ task 059_take_largest level=2
/// Remove the largest value (the first one of equals) from the vector and return it.
fn take_largest(values: &mut Vec<i32>) -> Option<i32> {
//@ solution
    let largest = *values.iter().max()?;
    let index = values.iter().position(|&value| value == largest)?;
    Some(values.remove(index))
}
//@ mutant
    values.iter().max().copied()
}
//@ tests
let mut values = vec![3, 8, 1, 8];
assert_eq!(take_largest(&mut values), Some(8));
assert_eq!(values, vec![3, 1, 8]);
assert_eq!(take_largest(&mut values), Some(8));
assert_eq!(values, vec![3, 1]);
assert_eq!(take_largest(&mut Vec::new()), None);

//@ task 060_transfer level=3
#[derive(Debug, PartialEq)]
struct Account {
    balance: u64,
    limit: u64,
}

/// Move `amount` from one account to the other. It is an error, and nothing changes, when the
/// money is not there ("funds") or the receiver's balance would exceed its limit ("limit").
fn transfer(from: &mut Account, to: &mut Account, amount: u64) -> Result<(), String> {
//@ solution
    if from.balance < amount {
        return Err("funds".to_string());
    }
    if to.balance + amount > to.limit {
        return Err("limit".to_string());
    }
    from.balance -= amount;
    to.balance += amount;
    Ok(())
}
//@ mutant
    if from.balance < amount {
        return Err("funds".to_string());
    }
    from.balance -= amount;
    if to.balance + amount > to.limit {
        return Err("limit".to_string());
    }
    to.balance += amount;
    Ok(())
}
//@ tests
let mut a = Account { balance: 10, limit: 100 };
let mut b = Account { balance: 5, limit: 12 };
assert_eq!(transfer(&mut a, &mut b, 7), Ok(()));
assert_eq!((a.balance, b.balance), (3, 12));
assert_eq!(transfer(&mut a, &mut b, 4), Err("funds".to_string()));
assert_eq!(transfer(&mut a, &mut b, 1), Err("limit".to_string()));
assert_eq!((a.balance, b.balance), (3, 12));
assert_eq!(transfer(&mut b, &mut a, 12), Ok(()));

//@ task 061_calculate level=3
enum Expr {
    Number(i64),
    Add(Box<Expr>, Box<Expr>),
    Divide(Box<Expr>, Box<Expr>),
}

/// Return the value of the expression, or `None` when it divides by zero.
fn calculate(expr: &Expr) -> Option<i64> {
//@ solution
    match expr {
        Expr::Number(value) => Some(*value),
        Expr::Add(a, b) => Some(calculate(a)? + calculate(b)?),
        Expr::Divide(a, b) => calculate(a)?.checked_div(calculate(b)?),
    }
}
//@ mutant
    match expr {
        Expr::Number(value) => Some(*value),
        Expr::Add(a, b) => Some(calculate(a)? + calculate(b)?),
        Expr::Divide(a, b) => Some(calculate(a)? / calculate(b)?),
    }
}
//@ tests
fn number(value: i64) -> Box<Expr> {
    Box::new(Expr::Number(value))
}
assert_eq!(calculate(&Expr::Number(4)), Some(4));
assert_eq!(calculate(&Expr::Add(number(1), number(2))), Some(3));
assert_eq!(calculate(&Expr::Divide(number(7), number(2))), Some(3));
assert_eq!(calculate(&Expr::Divide(number(7), number(0))), None);
let inner = Box::new(Expr::Divide(number(1), number(0)));
assert_eq!(calculate(&Expr::Add(number(1), inner)), None);

//@ task 062_count_if level=1
/// Count the items for which `is_wanted` returns true.
fn count_if<T>(items: &[T], is_wanted: impl Fn(&T) -> bool) -> usize {
//@ solution
    items.iter().filter(|item| is_wanted(item)).count()
}
//@ mutant
    items.iter().take_while(|item| is_wanted(item)).count()
}
//@ tests
assert_eq!(count_if(&[1, 8, 3, 9], |x| *x > 2), 3);
assert_eq!(count_if(&["a", "bb"], |x| x.len() == 2), 1);
assert_eq!(count_if(&[] as &[i32], |_| true), 0);
assert_eq!(count_if(&[1, 2], |_| false), 0);
