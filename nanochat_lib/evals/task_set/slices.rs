//@ task 011_longest_climb level=2
/// Return the length of the longest run of neighbours in which every value is greater than the
/// one before it.
fn longest_climb(values: &[i32]) -> usize {
//@ solution
    let mut best = 0;
    let mut length = 0;
    for (i, value) in values.iter().enumerate() {
        if i > 0 && *value > values[i - 1] {
            length += 1;
        } else {
            length = 1;
        }
        best = best.max(length);
    }
    best
}
//@ mutant
    let mut best = 0;
    let mut length = 0;
    for (i, value) in values.iter().enumerate() {
        if i > 0 && *value >= values[i - 1] {
            length += 1;
        } else {
            length = 1;
        }
        best = best.max(length);
    }
    best
}
//@ tests
assert_eq!(longest_climb(&[]), 0);
assert_eq!(longest_climb(&[4]), 1);
assert_eq!(longest_climb(&[1, 2, 2, 3, 4, 1]), 3);
assert_eq!(longest_climb(&[5, 5, 5]), 1);
assert_eq!(longest_climb(&[-3, -2, -1]), 3);

//@ task 012_gaps level=1
/// Return the distance between each value and the next one.
fn gaps(values: &[i32]) -> Vec<i32> {
//@ solution
    values.windows(2).map(|pair| (pair[1] - pair[0]).abs()).collect()
}
//@ mutant
    values.windows(2).map(|pair| pair[1] - pair[0]).collect()
}
//@ tests
assert_eq!(gaps(&[1, 4, 2]), vec![3, 2]);
assert_eq!(gaps(&[7]), Vec::<i32>::new());
assert_eq!(gaps(&[]), Vec::<i32>::new());
assert_eq!(gaps(&[-1, 1, 1]), vec![2, 0]);

//@ task 013_turn_left level=1
/// Return a copy in which every value moved `steps` places to the left; values that leave at the
/// front come back at the end.
fn turn_left(values: &[i32], steps: usize) -> Vec<i32> {
//@ solution
    let mut turned = values.to_vec();
    if !turned.is_empty() {
        turned.rotate_left(steps % values.len());
    }
    turned
}
//@ mutant
    let mut turned = values.to_vec();
    turned.rotate_left(steps);
    turned
}
//@ tests
assert_eq!(turn_left(&[1, 2, 3, 4], 1), vec![2, 3, 4, 1]);
assert_eq!(turn_left(&[1, 2, 3], 0), vec![1, 2, 3]);
assert_eq!(turn_left(&[1, 2, 3], 7), vec![2, 3, 1]);
assert_eq!(turn_left(&[], 3), Vec::<i32>::new());

//@ task 014_without_peaks level=3
/// Return the values without the peaks. A peak is greater than both of its neighbours; the first
/// and the last value are never peaks.
fn without_peaks(values: &[i32]) -> Vec<i32> {
//@ solution
    let mut kept = Vec::new();
    for i in 0..values.len() {
        let inside = i > 0 && i + 1 < values.len();
        if inside && values[i] > values[i - 1] && values[i] > values[i + 1] {
            continue;
        }
        kept.push(values[i]);
    }
    kept
}
//@ mutant
    let mut kept: Vec<i32> = Vec::new();
    for i in 0..values.len() {
        let inside = i > 0 && i + 1 < values.len();
        if inside && (values[i] > values[i - 1] || values[i] > values[i + 1]) {
            continue;
        }
        kept.push(values[i]);
    }
    kept
}
//@ tests
assert_eq!(without_peaks(&[1, 3, 2]), vec![1, 2]);
assert_eq!(without_peaks(&[1, 2, 3]), vec![1, 2, 3]);
assert_eq!(without_peaks(&[9, 1, 9]), vec![9, 1, 9]);
assert_eq!(without_peaks(&[]), Vec::<i32>::new());
assert_eq!(without_peaks(&[1, 5, 1, 5, 5, 1]), vec![1, 1, 5, 5, 1]);

//@ task 015_gains_and_losses level=1
/// Return the sum of the positive values and the sum of the negative ones.
fn gains_and_losses(values: &[i32]) -> (i32, i32) {
//@ solution
    let gains = values.iter().filter(|&&value| value > 0).sum();
    let losses = values.iter().filter(|&&value| value < 0).sum();
    (gains, losses)
}
//@ mutant
    let gains = values.iter().filter(|&&value| value > 0).sum();
    let losses = values.iter().filter(|&&value| value < 0).map(|value| -value).sum();
    (gains, losses)
}
//@ tests
assert_eq!(gains_and_losses(&[]), (0, 0));
assert_eq!(gains_and_losses(&[3, -2, 5, -9]), (8, -11));
assert_eq!(gains_and_losses(&[0, 0]), (0, 0));
assert_eq!(gains_and_losses(&[-4]), (0, -4));

//@ task 016_balance_point level=3
/// Return the first index at which the values before it and the values after it have equal sums,
/// or `None` when there is no such index.
fn balance_point(values: &[i64]) -> Option<usize> {
//@ solution
    let total: i64 = values.iter().sum();
    let mut before = 0;
    for (i, value) in values.iter().enumerate() {
        if before == total - before - value {
            return Some(i);
        }
        before += value;
    }
    None
}
//@ mutant
    let total: i64 = values.iter().sum();
    let mut before = 0;
    for (i, value) in values.iter().enumerate() {
        before += value;
        if before == total - before {
            return Some(i);
        }
    }
    None
}
//@ tests
assert_eq!(balance_point(&[1, 7, 3, 5, 3]), Some(2));
assert_eq!(balance_point(&[5]), Some(0));
assert_eq!(balance_point(&[]), None);
assert_eq!(balance_point(&[1, 2]), None);
assert_eq!(balance_point(&[4, -1, 1]), Some(0));

//@ task 017_merge_sorted level=3
/// Merge two slices, both sorted in ascending order, into one sorted vector.
fn merge_sorted(left: &[i32], right: &[i32]) -> Vec<i32> {
//@ solution
    let mut merged = Vec::with_capacity(left.len() + right.len());
    let (mut i, mut j) = (0, 0);
    while i < left.len() && j < right.len() {
        if left[i] <= right[j] {
            merged.push(left[i]);
            i += 1;
        } else {
            merged.push(right[j]);
            j += 1;
        }
    }
    merged.extend_from_slice(&left[i..]);
    merged.extend_from_slice(&right[j..]);
    merged
}
//@ mutant
    let mut merged = Vec::with_capacity(left.len() + right.len());
    let (mut i, mut j) = (0, 0);
    while i < left.len() && j < right.len() {
        if left[i] <= right[j] {
            merged.push(left[i]);
            i += 1;
        } else {
            merged.push(right[j]);
            j += 1;
        }
    }
    merged.extend_from_slice(&left[i..]);
    merged
}
//@ tests
assert_eq!(merge_sorted(&[1, 4], &[2, 3, 9]), vec![1, 2, 3, 4, 9]);
assert_eq!(merge_sorted(&[], &[]), Vec::<i32>::new());
assert_eq!(merge_sorted(&[5, 6], &[]), vec![5, 6]);
assert_eq!(merge_sorted(&[2, 2], &[2]), vec![2, 2, 2]);
assert_eq!(merge_sorted(&[-1], &[-5, 0]), vec![-5, -1, 0]);

//@ task 018_every_third level=1
/// Return the third value, the sixth, the ninth, and so on.
fn every_third(values: &[i32]) -> Vec<i32> {
//@ solution
    values.iter().skip(2).step_by(3).copied().collect()
}
//@ mutant
    values.iter().step_by(3).copied().collect()
}
//@ tests
assert_eq!(every_third(&[1, 2, 3, 4, 5, 6, 7]), vec![3, 6]);
assert_eq!(every_third(&[1, 2]), Vec::<i32>::new());
assert_eq!(every_third(&[9, 8, 7]), vec![7]);
assert_eq!(every_third(&[]), Vec::<i32>::new());

//@ task 019_runner_up level=2
/// Return the second largest of the different values, or `None` when there are fewer than two.
fn runner_up(values: &[i32]) -> Option<i32> {
//@ solution
    let largest = values.iter().max()?;
    values.iter().filter(|value| *value < largest).max().copied()
}
//@ mutant
    let mut sorted = values.to_vec();
    sorted.sort();
    sorted.iter().rev().nth(1).copied()
}
//@ tests
assert_eq!(runner_up(&[3, 9, 5]), Some(5));
assert_eq!(runner_up(&[9, 9, 5]), Some(5));
assert_eq!(runner_up(&[4, 4]), None);
assert_eq!(runner_up(&[]), None);
assert_eq!(runner_up(&[-1, -2]), Some(-2));

//@ task 020_swap_halves level=2
/// Exchange the first half of the slice with its second half, in place. With an odd number of
/// values the middle one stays where it is.
fn swap_halves(values: &mut [i32]) {
//@ solution
    let half = values.len() / 2;
    let offset = values.len() - half;
    for i in 0..half {
        values.swap(i, i + offset);
    }
}
//@ mutant
    let half = values.len() / 2;
    for i in 0..half {
        values.swap(i, i + half);
    }
}
//@ tests
let mut even = [1, 2, 3, 4];
swap_halves(&mut even);
assert_eq!(even, [3, 4, 1, 2]);
let mut odd = [1, 2, 3, 4, 5];
swap_halves(&mut odd);
assert_eq!(odd, [4, 5, 3, 1, 2]);
let mut single = [7];
swap_halves(&mut single);
assert_eq!(single, [7]);
let mut empty: [i32; 0] = [];
swap_halves(&mut empty);
assert!(empty.is_empty());
