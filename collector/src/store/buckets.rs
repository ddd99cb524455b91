//! Log buckets: how the rollup keeps times, so that they merge exactly and still give quantiles.
//!
//! An octave (from 2^n to 2^(n+1)) has 32 buckets of equal width, so a bucket is at most 1/32 of its lower bound wide,
//! and its middle is within 1/64 (1.6 %) of whatever fell into it. Numbers below 64 have a bucket each. The bucket is
//! what a double has for its exponent and the first five bits of its fraction: ClickHouse and Rust convert by the
//! same standard, so they agree on every number, and neither needs a logarithm. A histogram is two arrays, bucket ids
//! and counts; `sumMap` adds histograms, and so does anything else that adds counts.
//!
//! The other direction, from a bucket to its middle, is in the views (`connect_us`, `duration_us`), so that a quantile
//! is `quantileExactWeightedArray(0.99)(connect_us, connect_counts)`.

/// Bits of a double's fraction (52) that do not tell buckets apart, all but five.
const IGNORED_BITS: u32 = 47;

/// What is left of the double 1.0 (an exponent of 1023, no fraction) is bucket 1; bucket 0 is the number zero.
const BEFORE_ONE: u64 = (1023 << 5) - 1;

/// The bucket of a number.
pub fn bucket(number: u64) -> u16 {
    if number == 0 {
        return 0;
    }
    // At most (1023 + 64) << 5 less BEFORE_ONE, which is 2049.
    ((number as f64).to_bits() >> IGNORED_BITS).saturating_sub(BEFORE_ONE) as u16
}

/// The middle of the whole numbers in a bucket: what stands for them.
pub fn middle(bucket: u16) -> f64 {
    if bucket == 0 {
        return 0.0;
    }
    let lower = |bucket: u64| f64::from_bits((bucket + BEFORE_ONE) << IGNORED_BITS);
    let bucket = u64::from(bucket);
    (lower(bucket).ceil() + lower(bucket + 1).ceil() - 1.0) / 2.0
}

/// [`bucket`] as SQL, of a column of type UInt64.
pub fn bucket_sql(column: &str) -> String {
    format!(
        "toUInt16(if({column} = 0, 0, bitShiftRight(reinterpretAsUInt64(toFloat64({column})), {IGNORED_BITS}) - \
         {BEFORE_ONE}))"
    )
}

/// [`middle`] as SQL, of an expression of type UInt16.
pub fn middle_sql(bucket: &str) -> String {
    let lower = |shift: u64| {
        format!(
            "ceil(reinterpretAsFloat64(bitShiftLeft(toUInt64({bucket}) + {}, {IGNORED_BITS})))",
            BEFORE_ONE + shift
        )
    };
    format!("if({bucket} = 0, 0, ({} + {} - 1) / 2)", lower(0), lower(1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn small_numbers_have_a_bucket_each() {
        for number in 0..64 {
            assert_eq!(middle(bucket(number)), number as f64);
        }
        assert_eq!((bucket(65), middle(bucket(64))), (bucket(64), 64.5));
        assert_eq!(bucket(66), bucket(64) + 1);
        assert_eq!((bucket(0), bucket(1), bucket(u64::MAX)), (0, 1, 2049));
    }

    #[test]
    fn an_octave_has_32_buckets() {
        for octave in 5..63 {
            assert_eq!(bucket(2 << octave) - bucket(1 << octave), 32);
        }
    }

    proptest! {
        #[test]
        fn the_middle_is_within_one_part_in_64(number in any::<u64>(), shift in 0_u32..64) {
            let number = number >> shift;
            let error = (middle(bucket(number)) - number as f64).abs();
            prop_assert!(error * 64.0 <= number as f64, "{number}: {error}");
        }

        #[test]
        fn buckets_are_in_the_order_of_numbers(a in any::<u64>(), b in any::<u64>(), shift in 0_u32..64) {
            let (a, b) = (a >> shift, b >> shift);
            prop_assert!(bucket(a.min(b)) <= bucket(a.max(b)));
        }
    }
}
