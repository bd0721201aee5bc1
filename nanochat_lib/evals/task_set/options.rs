//@ task 031_first_negative level=1
/// Return the first negative value, if there is one.
fn first_negative(values: &[i32]) -> Option<i32> {
//@ solution
    values.iter().copied().find(|&value| value < 0)
}
//@ mutant
    values.iter().copied().filter(|&value| value < 0).min()
}
//@ tests
assert_eq!(first_negative(&[3, -1, -7]), Some(-1));
assert_eq!(first_negative(&[0, 1]), None);
assert_eq!(first_negative(&[]), None);
assert_eq!(first_negative(&[-5]), Some(-5));

//@ task 032_parse_point level=2
/// Read a point such as "3,-4"; spaces around the two numbers are allowed. Anything else is
/// `None`.
fn parse_point(text: &str) -> Option<(i32, i32)> {
//@ solution
    let (x, y) = text.split_once(',')?;
    Some((x.trim().parse().ok()?, y.trim().parse().ok()?))
}
//@ mutant
    let (x, y) = text.split_once(',')?;
    Some((x.parse().ok()?, y.parse().ok()?))
}
//@ tests
assert_eq!(parse_point("3,-4"), Some((3, -4)));
assert_eq!(parse_point(" 1 , 2 "), Some((1, 2)));
assert_eq!(parse_point("1,2,3"), None);
assert_eq!(parse_point("7"), None);
assert_eq!(parse_point("a,1"), None);

//@ task 033_share_evenly level=2
/// Return how many sweets each child gets when all sweets are shared evenly. It is an error
/// ("no children") when there is nobody, and an error ("left over") when sweets remain.
fn share_evenly(sweets: u32, children: u32) -> Result<u32, String> {
//@ solution
    if children == 0 {
        return Err("no children".to_string());
    }
    if sweets % children != 0 {
        return Err("left over".to_string());
    }
    Ok(sweets / children)
}
//@ mutant
    if children == 0 {
        return Err("no children".to_string());
    }
    Ok(sweets / children)
}
//@ tests
assert_eq!(share_evenly(12, 4), Ok(3));
assert_eq!(share_evenly(0, 4), Ok(0));
assert_eq!(share_evenly(5, 0), Err("no children".to_string()));
assert_eq!(share_evenly(5, 2), Err("left over".to_string()));

//@ task 034_sum_of_texts level=2
/// Add the numbers written in the texts. The first text that is not a number is the error.
fn sum_of_texts(texts: &[&str]) -> Result<i64, String> {
//@ solution
    let mut sum = 0;
    for text in texts {
        match text.parse::<i64>() {
            Ok(number) => sum += number,
            Err(_) => return Err(text.to_string()),
        }
    }
    Ok(sum)
}
//@ mutant
    let mut sum = 0;
    for text in texts {
        if let Ok(number) = text.parse::<i64>() {
            sum += number;
        }
    }
    Ok(sum)
}
//@ tests
assert_eq!(sum_of_texts(&["1", "20", "-3"]), Ok(18));
assert_eq!(sum_of_texts(&[]), Ok(0));
assert_eq!(sum_of_texts(&["1", "x", "y"]), Err("x".to_string()));
assert_eq!(sum_of_texts(&["", "1"]), Err(String::new()));

//@ task 035_follow_links level=3
/// `links[i]` names the next place after place `i`, or `None` when the way ends there. Return
/// the place where the way from `start` ends, or `None` when it never ends.
fn follow_links(links: &[Option<usize>], start: usize) -> Option<usize> {
//@ solution
    let mut place = start;
    for _ in 0..links.len() {
        match links[place] {
            Some(next) => place = next,
            None => return Some(place),
        }
    }
    None
}
//@ mutant
    links[start].or(Some(start))
}
//@ tests
assert_eq!(follow_links(&[Some(1), Some(2), None], 0), Some(2));
assert_eq!(follow_links(&[None], 0), Some(0));
assert_eq!(follow_links(&[Some(1), Some(0)], 0), None);
assert_eq!(follow_links(&[Some(0), None], 0), None);
assert_eq!(follow_links(&[None, Some(3), Some(0), Some(2)], 1), Some(0));

//@ task 036_longer_of level=2
/// Return the longer of the texts that are present; `a` when both are equally long.
fn longer_of<'a>(a: Option<&'a str>, b: Option<&'a str>) -> Option<&'a str> {
//@ solution
    match (a, b) {
        (Some(a), Some(b)) => Some(if b.len() > a.len() { b } else { a }),
        (a, None) => a,
        (None, b) => b,
    }
}
//@ mutant
    match (a, b) {
        (Some(a), Some(b)) => Some(if b.len() > a.len() { b } else { a }),
        _ => None,
    }
}
//@ tests
assert_eq!(longer_of(Some("ab"), Some("abc")), Some("abc"));
assert_eq!(longer_of(Some("xy"), Some("ab")), Some("xy"));
assert_eq!(longer_of(None, Some("b")), Some("b"));
assert_eq!(longer_of(Some("a"), None), Some("a"));
assert_eq!(longer_of(None, None), None);

//@ task 037_parse_grade level=2
#[derive(Debug, PartialEq)]
enum GradeError {
    NotANumber,
    OutOfRange(i32),
}

/// Read a school grade, a whole number from 1 to 6, from the text.
fn parse_grade(text: &str) -> Result<i32, GradeError> {
//@ solution
    let grade: i32 = text.parse().map_err(|_| GradeError::NotANumber)?;
    if (1..=6).contains(&grade) {
        Ok(grade)
    } else {
        Err(GradeError::OutOfRange(grade))
    }
}
//@ mutant
    let grade: i32 = text.parse().map_err(|_| GradeError::NotANumber)?;
    if (1..6).contains(&grade) {
        Ok(grade)
    } else {
        Err(GradeError::OutOfRange(grade))
    }
}
//@ tests
assert_eq!(parse_grade("1"), Ok(1));
assert_eq!(parse_grade("6"), Ok(6));
assert_eq!(parse_grade("7"), Err(GradeError::OutOfRange(7)));
assert_eq!(parse_grade("-1"), Err(GradeError::OutOfRange(-1)));
assert_eq!(parse_grade("good"), Err(GradeError::NotANumber));

//@ task 038_setting level=2
/// Read a line such as "name = value" and return both parts without surrounding spaces. A line
/// without `=`, or with nothing in front of it, is `None`.
fn setting(line: &str) -> Option<(&str, &str)> {
//@ solution
    let (key, value) = line.split_once('=')?;
    let key = key.trim();
    if key.is_empty() {
        return None;
    }
    Some((key, value.trim()))
}
//@ mutant
    let (key, value) = line.split_once('=')?;
    Some((key.trim(), value.trim()))
}
//@ tests
assert_eq!(setting("size = 12"), Some(("size", "12")));
assert_eq!(setting("url=a=b"), Some(("url", "a=b")));
assert_eq!(setting("empty ="), Some(("empty", "")));
assert_eq!(setting(" = 3"), None);
assert_eq!(setting("nothing"), None);

//@ task 039_best_score level=2
/// Return the largest score; scores that are not a number are ignored.
fn best_score(scores: &[f64]) -> Option<f64> {
//@ solution
    scores.iter().copied().filter(|score| !score.is_nan()).reduce(f64::max)
}
//@ mutant
    let mut best = 0.0;
    for &score in scores {
        if score > best {
            best = score;
        }
    }
    Some(best)
}
//@ tests
assert_eq!(best_score(&[1.5, 4.0, 2.0]), Some(4.0));
assert_eq!(best_score(&[]), None);
assert_eq!(best_score(&[f64::NAN]), None);
assert_eq!(best_score(&[-3.0, f64::NAN, -2.0]), Some(-2.0));

//@ task 040_all_present level=1
/// Return all values when none is missing, else `None`.
fn all_present(values: &[Option<i32>]) -> Option<Vec<i32>> {
//@ solution
    values.iter().copied().collect()
}
//@ mutant
    Some(values.iter().flatten().copied().collect())
}
//@ tests
assert_eq!(all_present(&[Some(1), Some(2)]), Some(vec![1, 2]));
assert_eq!(all_present(&[Some(1), None]), None);
assert_eq!(all_present(&[]), Some(vec![]));
assert_eq!(all_present(&[None]), None);
