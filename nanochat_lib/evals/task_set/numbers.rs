//@ task 001_clamp_sum level=1
/// Sum the values after limiting each one to the range `low..=high`.
fn clamp_sum(values: &[i32], low: i32, high: i32) -> i32 {
//@ solution
    values.iter().map(|&value| value.clamp(low, high)).sum()
}
//@ mutant
    values.iter().sum::<i32>().clamp(low, high)
}
//@ tests
assert_eq!(clamp_sum(&[1, 5, 9], 2, 6), 13);
assert_eq!(clamp_sum(&[], 2, 6), 0);
assert_eq!(clamp_sum(&[-10, -20], -5, 5), -10);
assert_eq!(clamp_sum(&[3, 3, 3], 0, 4), 9);

//@ task 002_halvings level=1
/// Count how often `n` can be halved (rounding down) until it is zero.
fn halvings(n: u32) -> u32 {
//@ solution
    let mut rest = n;
    let mut count = 0;
    while rest > 0 {
        rest /= 2;
        count += 1;
    }
    count
}
//@ mutant
    let mut rest = n;
    let mut count = 0;
    while rest > 1 {
        rest /= 2;
        count += 1;
    }
    count
}
//@ tests
assert_eq!(halvings(0), 0);
assert_eq!(halvings(1), 1);
assert_eq!(halvings(5), 3);
assert_eq!(halvings(8), 4);
assert_eq!(halvings(u32::MAX), 32);

//@ task 003_ticket_price level=1
/// Price of a ticket: free below 6 years, 5 up to 17 years, 12 from 18 to 64 years, and 8 for
/// everybody older. On weekends every ticket that is not free costs 2 more.
fn ticket_price(age: u32, is_weekend: bool) -> u32 {
//@ solution
    let price = match age {
        0..=5 => return 0,
        6..=17 => 5,
        18..=64 => 12,
        _ => 8,
    };
    if is_weekend { price + 2 } else { price }
}
//@ mutant
    let price = match age {
        0..=5 => 0,
        6..=17 => 5,
        18..=64 => 12,
        _ => 8,
    };
    if is_weekend { price + 2 } else { price }
}
//@ tests
assert_eq!(ticket_price(5, true), 0);
assert_eq!(ticket_price(6, false), 5);
assert_eq!(ticket_price(17, true), 7);
assert_eq!(ticket_price(18, false), 12);
assert_eq!(ticket_price(64, true), 14);
assert_eq!(ticket_price(65, false), 8);

//@ task 004_wrap_hour level=1
/// Bring any number of hours, also a negative one, into the range `0..24` of a clock.
fn wrap_hour(hour: i32) -> i32 {
//@ solution
    hour.rem_euclid(24)
}
//@ mutant
    hour % 24
}
//@ tests
assert_eq!(wrap_hour(0), 0);
assert_eq!(wrap_hour(24), 0);
assert_eq!(wrap_hour(-1), 23);
assert_eq!(wrap_hour(-49), 23);
assert_eq!(wrap_hour(50), 2);

//@ task 005_midpoint level=2
/// Return the number halfway between `a` and `b`, rounded down, for every pair of numbers:
/// the sum of two large numbers must not overflow.
fn midpoint(a: i32, b: i32) -> i32 {
//@ solution
    let sum = i64::from(a) + i64::from(b);
    sum.div_euclid(2) as i32
}
//@ mutant
    (a + b) / 2
}
//@ tests
assert_eq!(midpoint(2, 6), 4);
assert_eq!(midpoint(2, 5), 3);
assert_eq!(midpoint(-3, 0), -2);
assert_eq!(midpoint(i32::MAX, i32::MAX), i32::MAX);
assert_eq!(midpoint(i32::MIN, i32::MIN), i32::MIN);

//@ task 006_digit_span level=2
/// Return the largest decimal digit of `n` minus its smallest one.
fn digit_span(n: u64) -> u64 {
//@ solution
    let mut rest = n;
    let mut largest = 0;
    let mut smallest = 9;
    loop {
        let digit = rest % 10;
        largest = largest.max(digit);
        smallest = smallest.min(digit);
        rest /= 10;
        if rest == 0 {
            return largest - smallest;
        }
    }
}
//@ mutant
    let mut rest = n;
    let mut largest = 0;
    let mut smallest = 0;
    while rest > 0 {
        let digit = rest % 10;
        largest = largest.max(digit);
        smallest = smallest.min(digit);
        rest /= 10;
    }
    largest - smallest
}
//@ tests
assert_eq!(digit_span(0), 0);
assert_eq!(digit_span(7), 0);
assert_eq!(digit_span(352), 3);
assert_eq!(digit_span(909), 9);
assert_eq!(digit_span(4444), 0);

//@ task 007_split_seconds level=1
/// Split a duration in seconds into whole hours, minutes and seconds.
fn split_seconds(total: u32) -> (u32, u32, u32) {
//@ solution
    (total / 3600, total / 60 % 60, total % 60)
}
//@ mutant
    (total / 3600, total / 60, total % 60)
}
//@ tests
assert_eq!(split_seconds(0), (0, 0, 0));
assert_eq!(split_seconds(59), (0, 0, 59));
assert_eq!(split_seconds(3600), (1, 0, 0));
assert_eq!(split_seconds(7384), (2, 3, 4));

//@ task 008_bounces level=2
/// A ball falls from `height` centimetres and rises to three fifths (rounded down) after each
/// bounce. Count the bounces until it no longer rises by at least one centimetre; the last
/// bounce, after which it stays down, counts too. A ball that lies on the floor never bounces.
fn bounces(height: u32) -> u32 {
//@ solution
    let mut height = height;
    let mut count = 0;
    while height > 0 {
        height = height * 3 / 5;
        count += 1;
    }
    count
}
//@ mutant
    let mut height = height;
    let mut count = 0;
    while height > 0 {
        height = height / 5 * 3;
        count += 1;
    }
    count
}
//@ tests
assert_eq!(bounces(0), 0);
assert_eq!(bounces(1), 1);
assert_eq!(bounces(2), 2);
assert_eq!(bounces(10), 4);
assert_eq!(bounces(100), 9);

//@ task 009_ring_distance level=2
/// Return the smallest number of steps between two seats of a round table with `n_seats` seats,
/// numbered from 0.
fn ring_distance(a: u32, b: u32, n_seats: u32) -> u32 {
//@ solution
    let forward = a.abs_diff(b);
    forward.min(n_seats - forward)
}
//@ mutant
    let forward = a.abs_diff(b);
    forward.max(n_seats - forward)
}
//@ tests
assert_eq!(ring_distance(0, 0, 5), 0);
assert_eq!(ring_distance(0, 4, 5), 1);
assert_eq!(ring_distance(1, 3, 8), 2);
assert_eq!(ring_distance(7, 2, 8), 3);
assert_eq!(ring_distance(0, 4, 8), 4);

//@ task 010_coins level=2
/// Return the fewest coins of value 1, 5, 10 and 25 that pay exactly `amount`.
fn fewest_coins(amount: u32) -> u32 {
//@ solution
    let mut rest = amount;
    let mut count = 0;
    for coin in [25, 10, 5, 1] {
        count += rest / coin;
        rest %= coin;
    }
    count
}
//@ mutant
    let mut rest = amount;
    let mut count = 0;
    for coin in [25, 10, 5, 1] {
        if rest >= coin {
            count += 1;
            rest -= coin;
        }
    }
    count
}
//@ tests
assert_eq!(fewest_coins(0), 0);
assert_eq!(fewest_coins(4), 4);
assert_eq!(fewest_coins(30), 2);
assert_eq!(fewest_coins(99), 9);
assert_eq!(fewest_coins(50), 2);
