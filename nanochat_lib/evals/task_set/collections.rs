//@ task 041_winner level=3
use std::collections::BTreeMap;

/// Return the name with the most votes; of equal names the first one in the alphabet. Without
/// votes there is no winner.
fn winner(votes: &[&str]) -> Option<String> {
//@ solution
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for vote in votes {
        *counts.entry(vote).or_insert(0) += 1;
    }
    let most = *counts.values().max()?;
    counts.iter().find(|(_, &count)| count == most).map(|(name, _)| name.to_string())
}
//@ mutant
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for vote in votes {
        *counts.entry(vote).or_insert(0) += 1;
    }
    counts.into_iter().max_by_key(|entry| entry.1).map(|(name, _)| name.to_string())
}
//@ tests
assert_eq!(winner(&["eva", "bob", "eva"]), Some("eva".to_string()));
assert_eq!(winner(&["eva", "bob"]), Some("bob".to_string()));
assert_eq!(winner(&[]), None);
assert_eq!(winner(&["z"]), Some("z".to_string()));

//@ task 042_by_floor level=3
use std::collections::{BTreeMap, HashMap};

/// Turn a map from names to floors into a map from floors to their names in alphabetical order.
fn by_floor(floors: &HashMap<String, u32>) -> BTreeMap<u32, Vec<String>> {
//@ solution
    let mut names: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for (name, floor) in floors {
        names.entry(*floor).or_default().push(name.clone());
    }
    for list in names.values_mut() {
        list.sort();
    }
    names
}
//@ mutant
    let mut names: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for (name, floor) in floors {
        names.insert(*floor, vec![name.clone()]);
    }
    names
}
//@ tests
let floors: HashMap<String, u32> =
    [("eva", 2), ("bob", 1), ("ann", 2)].map(|(name, floor)| (name.to_string(), floor)).into();
let names = by_floor(&floors);
assert_eq!(names.len(), 2);
assert_eq!(names[&1], vec!["bob"]);
assert_eq!(names[&2], vec!["ann", "eva"]);
assert!(by_floor(&HashMap::new()).is_empty());

//@ task 043_without_repeats level=2
use std::collections::HashSet;

/// Return the values in their order, each one only where it appears for the first time.
fn without_repeats(values: &[i32]) -> Vec<i32> {
//@ solution
    let mut seen = HashSet::new();
    values.iter().copied().filter(|value| seen.insert(*value)).collect()
}
//@ mutant
    let mut kept = values.to_vec();
    kept.dedup();
    kept
}
//@ tests
assert_eq!(without_repeats(&[3, 1, 3, 2, 1]), vec![3, 1, 2]);
assert_eq!(without_repeats(&[]), Vec::<i32>::new());
assert_eq!(without_repeats(&[5, 5, 5]), vec![5]);
assert_eq!(without_repeats(&[1, 2]), vec![1, 2]);

//@ task 044_only_in_one level=2
use std::collections::BTreeSet;

/// Return the values that are in exactly one of the two slices, sorted and without repeats.
fn only_in_one(a: &[i32], b: &[i32]) -> Vec<i32> {
//@ solution
    let a: BTreeSet<i32> = a.iter().copied().collect();
    let b: BTreeSet<i32> = b.iter().copied().collect();
    a.symmetric_difference(&b).copied().collect()
}
//@ mutant
    let a: BTreeSet<i32> = a.iter().copied().collect();
    let b: BTreeSet<i32> = b.iter().copied().collect();
    a.difference(&b).copied().collect()
}
//@ tests
assert_eq!(only_in_one(&[1, 2, 2], &[2, 3]), vec![1, 3]);
assert_eq!(only_in_one(&[], &[4, 4]), vec![4]);
assert_eq!(only_in_one(&[7], &[7]), Vec::<i32>::new());
assert_eq!(only_in_one(&[9, 1], &[5]), vec![1, 5, 9]);

//@ task 045_typed_text level=2
/// Replay the keys somebody typed: "<" deletes the last character that is left, if any; every
/// other key adds its text.
fn typed_text(keys: &[&str]) -> String {
//@ solution
    let mut text = String::new();
    for key in keys {
        if *key == "<" {
            text.pop();
        } else {
            text.push_str(key);
        }
    }
    text
}
//@ mutant
    let mut text = String::new();
    for key in keys {
        if *key == "<" {
            text.clear();
        } else {
            text.push_str(key);
        }
    }
    text
}
//@ tests
assert_eq!(typed_text(&["a", "b", "<", "c"]), "ac");
assert_eq!(typed_text(&["<", "x"]), "x");
assert_eq!(typed_text(&[]), "");
assert_eq!(typed_text(&["ab", "<"]), "a");
assert_eq!(typed_text(&["é", "<", "e"]), "e");

//@ task 046_stock level=3
use std::collections::BTreeMap;

/// Apply deliveries (positive) and sales (negative) to an empty stock, in order. A sale takes at
/// most what is there. Goods that are sold out stay in the map with zero.
fn stock<'a>(changes: &[(&'a str, i32)]) -> BTreeMap<&'a str, i32> {
//@ solution
    let mut stock = BTreeMap::new();
    for (name, change) in changes {
        let amount = stock.entry(*name).or_insert(0);
        *amount = (*amount + change).max(0);
    }
    stock
}
//@ mutant
    let mut stock = BTreeMap::new();
    for (name, change) in changes {
        let amount = stock.entry(*name).or_insert(0);
        *amount += change;
    }
    stock
}
//@ tests
let result = stock(&[("tea", 5), ("tea", -2), ("jam", 1), ("jam", -4), ("jam", 2)]);
assert_eq!(result["tea"], 3);
assert_eq!(result["jam"], 2);
assert_eq!(stock(&[("ice", -3)])["ice"], 0);
assert!(stock(&[]).is_empty());

//@ task 047_first_repeat level=2
use std::collections::HashSet;

/// Return the first value that appeared before, reading from the left.
fn first_repeat(values: &[i32]) -> Option<i32> {
//@ solution
    let mut seen = HashSet::new();
    values.iter().copied().find(|value| !seen.insert(*value))
}
//@ mutant
    values.iter().copied().find(|value| values.iter().filter(|other| *other == value).count() > 1)
}
//@ tests
assert_eq!(first_repeat(&[1, 2, 3, 2, 1]), Some(2));
assert_eq!(first_repeat(&[1, 2, 3]), None);
assert_eq!(first_repeat(&[]), None);
assert_eq!(first_repeat(&[4, 4]), Some(4));

//@ task 048_best_window level=3
/// Return the largest sum of `width` neighbouring values, or `None` when `width` is zero or
/// greater than the number of values.
fn best_window(values: &[i64], width: usize) -> Option<i64> {
//@ solution
    if width == 0 {
        return None;
    }
    values.windows(width).map(|window| window.iter().sum()).max()
}
//@ mutant
    if width == 0 {
        return None;
    }
    values.chunks(width).map(|window| window.iter().sum()).max()
}
//@ tests
assert_eq!(best_window(&[1, 9, 9, 1], 2), Some(18));
assert_eq!(best_window(&[-5, -2, -7], 1), Some(-2));
assert_eq!(best_window(&[1, 2], 3), None);
assert_eq!(best_window(&[1, 2], 0), None);
assert_eq!(best_window(&[4, 5], 2), Some(9));

//@ task 049_last_in_circle level=3
use std::collections::VecDeque;

/// Players 1 to `n` stand in a circle. Counting from player 1, each `step`-th player leaves and
/// counting goes on after the gap. Return the player who remains; `n` and `step` are at least 1.
fn last_in_circle(n: u32, step: u32) -> u32 {
//@ solution
    let mut players: VecDeque<u32> = (1..=n).collect();
    while players.len() > 1 {
        for _ in 1..step {
            if let Some(player) = players.pop_front() {
                players.push_back(player);
            }
        }
        players.pop_front();
    }
    players[0]
}
//@ mutant
    let mut players: VecDeque<u32> = (1..=n).collect();
    while players.len() > 1 {
        for _ in 0..step {
            if let Some(player) = players.pop_front() {
                players.push_back(player);
            }
        }
        players.pop_front();
    }
    players[0]
}
//@ tests
assert_eq!(last_in_circle(1, 5), 1);
assert_eq!(last_in_circle(5, 2), 3);
assert_eq!(last_in_circle(7, 3), 4);
assert_eq!(last_in_circle(4, 1), 4);

//@ task 050_longest_streak level=3
/// Return the letter with the longest run of equal neighbours and the length of that run; the
/// first one when several runs are equally long, and `None` for an empty text.
fn longest_streak(text: &str) -> Option<(char, usize)> {
//@ solution
    let mut best: Option<(char, usize)> = None;
    let mut current: Option<(char, usize)> = None;
    for letter in text.chars() {
        let length = match current {
            Some((last, length)) if last == letter => length + 1,
            _ => 1,
        };
        current = Some((letter, length));
        if best.map_or(true, |(_, longest)| length > longest) {
            best = current;
        }
    }
    best
}
//@ mutant
    let mut best: Option<(char, usize)> = None;
    for letter in text.chars() {
        let length = text.chars().filter(|other| *other == letter).count();
        if best.map_or(true, |(_, longest)| length > longest) {
            best = Some((letter, length));
        }
    }
    best
}
//@ tests
assert_eq!(longest_streak("abbbcc"), Some(('b', 3)));
assert_eq!(longest_streak(""), None);
assert_eq!(longest_streak("abc"), Some(('a', 1)));
assert_eq!(longest_streak("abacaddd"), Some(('d', 3)));
assert_eq!(longest_streak("abaab"), Some(('a', 2)));
