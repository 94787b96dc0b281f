//! Quantities: parsing, canonical form and arithmetic, against a model.

use proptest::prelude::*;

use super::*;

#[test]
fn parses_and_prints_as_upstream() {
    for (text, printed) in [
        ("0", "0"),
        ("0Ki", "0"),
        ("0.0", "0"),
        ("-0", "0"),
        ("1", "1"),
        ("1000", "1k"),
        ("1024", "1024"),
        ("1Ki", "1Ki"),
        ("1024Ki", "1Mi"),
        ("1.5Gi", "1536Mi"),
        ("1500Mi", "1500Mi"),
        ("0.5Mi", "512Ki"),
        ("100m", "100m"),
        ("0.1", "100m"),
        ("0.1m", "100u"),
        ("1.5", "1500m"),
        ("1.500", "1.500"),
        ("0.100", "100m"),
        ("1000m", "1"),
        ("12e6", "12e6"),
        ("1e3", "1e3"),
        ("1E3", "1E3"),
        ("1.5e3", "1500"),
        ("1e1", "10"),
        ("1e-3", "1e-3"),
        ("1.25e-1", "1.25e-1"),
        ("+1", "+1"),
        ("01", "01"),
        ("-1.5Gi", "-1536Mi"),
        ("1.1Ki", "1126400m"),
        (".5", "500m"),
        ("5.", "5."),
        ("0.5Ki", "512"),
        ("1Ei", "1Ei"),
        ("16Ei", "9223372036854775807"),
        ("9223372036854775807", "9223372036854775807"),
        ("9223372036854775808", "9223372036854775808"),
        ("0.0000000001", "1n"),
        ("-0.0000000001", "-1n"),
        ("1.0000000001", "1000000001n"),
        ("0.1n", "1n"),
        ("123456789012345678901234567890123456789012345", "123456789012345678901234567890123456789012345"),
        ("1e100", "10e99"),
        ("1000E", "1000E"),
        ("500Gi", "500Gi"),
        ("8Gi", "8Gi"),
    ] {
        let quantity = Quantity::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(quantity.to_string(), printed, "{text}");
    }
}

#[test]
fn refuses_as_upstream() {
    for (text, error) in [
        ("", ParseError::Format),
        ("1.1.M", ParseError::Format),
        ("1+1.0M", ParseError::Format),
        ("0.1mi", ParseError::Suffix),
        ("0.1am", ParseError::Format),
        ("aoeu", ParseError::Format),
        (".5i", ParseError::Suffix),
        ("1i", ParseError::Suffix),
        ("-3.01i", ParseError::Suffix),
        ("1 ", ParseError::Format),
        ("10KI", ParseError::Format),
        ("1k1", ParseError::Suffix),
    ] {
        assert_eq!(Quantity::parse(text).map(|q| q.to_string()), Err(error), "{text}");
    }
    assert!(Quantity::parse(&"1".repeat(MAX_TEXT_LENGTH + 1)).is_err());
}

#[test]
fn integers_round_away_from_zero_and_saturate() {
    for (text, value, milli) in [
        ("1.5", 2, 1500),
        ("-1.5", -2, -1500),
        ("1m", 1, 1),
        ("1u", 1, 1),
        ("1Gi", 1 << 30, 1000 << 30),
        ("1E", 1_000_000_000_000_000_000, i64::MAX),
        ("10E", i64::MAX, i64::MAX),
        ("-10E", i64::MIN, i64::MIN),
        ("1e1000000", i64::MAX, i64::MAX),
        ("1e-1000000", 1, 1),
    ] {
        let quantity = Quantity::parse(text).expect(text);
        assert_eq!((quantity.value(), quantity.milli_value()), (value, milli), "{text}");
    }
    assert_eq!(Quantity::parse("1500m").expect("valid").as_i64(), None);
    assert_eq!(Quantity::parse("2k").expect("valid").as_i64(), Some(2000));
}

#[test]
fn sums_take_the_format_of_what_is_not_zero() {
    let mut sum = Quantity::zero();
    sum += &Quantity::parse("512Mi").expect("valid");
    sum += &Quantity::parse("512Mi").expect("valid");
    assert_eq!(sum.to_string(), "1Gi");
    sum -= &Quantity::parse("2Gi").expect("valid");
    assert_eq!(sum.to_string(), "-1Gi");
}

#[test]
fn huge_exponents_cost_nothing() {
    let mut huge = Quantity::parse("1e999999999").expect("valid");
    let one = Quantity::parse("1").expect("valid");
    assert!(huge > one && huge.negated() < one);
    huge += &one;
    assert_eq!(huge.to_string(), "1e999999999");
}

/// The number of nanos, read the slow and obvious way.
fn model(whole: u64, fraction: u32, negative: bool, suffix: &str) -> i128 {
    let nanos = i128::from(whole) * 1_000_000_000 + i128::from(fraction) * 1_000_000;
    let (numerator, denominator) = match suffix {
        "m" => (1, 1000),
        "k" => (1000, 1),
        "M" => (1_000_000, 1),
        "Ki" => (1024, 1),
        "Mi" => (1 << 20, 1),
        "e2" => (100, 1),
        _ => (1, 1),
    };
    let nanos = nanos * numerator;
    let nanos = nanos / denominator + i128::from(nanos % denominator != 0);
    if negative { -nanos } else { nanos }
}

fn amount() -> impl Strategy<Value = (String, i128)> {
    (0..1_000_000_u64, 0..1000_u32, any::<bool>(), prop_oneof!["", "m", "k", "M", "Ki", "Mi", "e2"]).prop_map(
        |(whole, fraction, negative, suffix)| {
            let sign = if negative { "-" } else { "" };
            (format!("{sign}{whole}.{fraction:03}{suffix}"), model(whole, fraction, negative, &suffix))
        },
    )
}

proptest! {
    #[test]
    fn arithmetic_agrees_with_integers((a, a_nanos) in amount(), (b, b_nanos) in amount(), factor in -1000..1000_i64) {
        let (a, b) = (Quantity::parse(&a).expect("valid"), Quantity::parse(&b).expect("valid"));
        prop_assert_eq!(a.cmp(&b), a_nanos.cmp(&b_nanos));
        let check = |quantity: &Quantity, nanos: i128| {
            let rounded = |unit: i128| {
                let whole = nanos / unit + (nanos % unit).signum();
                i64::try_from(whole).unwrap_or(if whole < 0 { i64::MIN } else { i64::MAX })
            };
            assert_eq!(quantity.value(), rounded(1_000_000_000));
            assert_eq!(quantity.milli_value(), rounded(1_000_000));
            let printed = quantity.to_string();
            let again = Quantity::parse(&printed).expect("canonical text parses");
            assert_eq!(&again, quantity, "{printed}");
            assert_eq!(again.to_string(), printed);
        };
        let mut sum = a.clone();
        sum += &b;
        check(&sum, a_nanos + b_nanos);
        sum -= &a;
        sum -= &a;
        check(&sum, b_nanos - a_nanos);
        check(&a.times(factor), a_nanos * i128::from(factor));
        check(&a, a_nanos);
    }

    #[test]
    fn large_numbers_behave_as_small_ones(digits in "[1-9][0-9]{38,90}", small in 0..1_000_000_000_i64) {
        let large = Quantity::parse(&digits).expect("valid");
        let printed = large.times(1).to_string();
        prop_assert_eq!(&Quantity::parse(&printed).expect("printed"), &large);
        prop_assert!(digits.starts_with(printed.trim_end_matches(['k', 'M', 'G', 'T', 'P', 'E'])));
        let mut sum = large.clone();
        sum += &Quantity::new(small, Format::DecimalSi);
        prop_assert!(sum >= large);
        sum -= &large;
        prop_assert_eq!(sum.value(), small);
        prop_assert_eq!(large.times(small).times(1).cmp(&large), if small == 0 { Ordering::Less } else if small == 1 { Ordering::Equal } else { Ordering::Greater });
    }

    #[test]
    fn any_text_parses_or_fails(text in "[-+0-9.eEinumkKMGTP ]{0,12}") {
        if let Ok(quantity) = Quantity::parse(&text) {
            prop_assert_eq!(Quantity::parse(&quantity.to_string()).expect("printed text parses"), quantity);
        }
    }
}
