/// Sum the squares of the even values, or return `None` when there is no even value.
pub fn sum_even_squares(values: &[i64]) -> Option<i64> {
    let mut total = None;
    for value in values.iter().filter(|value| *value % 2 == 0) {
        total = Some(total.unwrap_or(0) + value * value);
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_only_even_values() {
        assert_eq!(sum_even_squares(&[1, 2, 3, 4]), Some(20));
    }

    #[test]
    fn odd_values_alone_give_none() {
        assert_eq!(sum_even_squares(&[1, 3]), None);
        assert_eq!(sum_even_squares(&[]), None);
    }
}
