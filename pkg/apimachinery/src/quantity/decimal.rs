//! Exact decimals: an integer of any size times a power of ten. Almost every amount fits in 128 bits;
//! those that do not are digits in a vector.

use std::cmp::Ordering;

/// Sums of amounts further apart than this many digits keep only the larger: the exact sum would have
/// that many digits, for which nobody asks but an attacker.
const MAX_DIGITS: i64 = 4096;

/// `±magnitude * 10^scale`.
#[derive(Clone, Debug)]
pub(super) struct Decimal {
    negative: bool,
    magnitude: Magnitude,
    scale: i32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Magnitude {
    Small(u128),
    /// Base 10^9, least significant first, no zeros on top; more than fits in `Small`.
    Large(Vec<u32>),
}

const BASE: u64 = 1_000_000_000;

impl Magnitude {
    fn limbs(&self) -> Vec<u32> {
        match self {
            Self::Large(limbs) => limbs.clone(),
            Self::Small(number) => {
                let (mut number, mut limbs) = (*number, Vec::with_capacity(5));
                while number > 0 {
                    limbs.push((number % u128::from(BASE)) as u32);
                    number /= u128::from(BASE);
                }
                limbs
            }
        }
    }

    fn from_limbs(mut limbs: Vec<u32>) -> Self {
        while limbs.last() == Some(&0) {
            limbs.pop();
        }
        let small = limbs
            .iter()
            .rev()
            .try_fold(0_u128, |sum, limb| sum.checked_mul(u128::from(BASE))?.checked_add(u128::from(*limb)));
        small.map_or(Self::Large(limbs), Self::Small)
    }

    fn is_zero(&self) -> bool {
        *self == Self::Small(0)
    }

    fn times(&self, factor: u32) -> Self {
        if let Self::Small(number) = self
            && let Some(product) = number.checked_mul(u128::from(factor))
        {
            return Self::Small(product);
        }
        let mut carry = 0_u64;
        let mut limbs = self.limbs();
        for limb in &mut limbs {
            let product = u64::from(*limb) * u64::from(factor) + carry;
            *limb = (product % BASE) as u32;
            carry = product / BASE;
        }
        while carry > 0 {
            limbs.push((carry % BASE) as u32);
            carry /= BASE;
        }
        Self::from_limbs(limbs)
    }

    /// Quotient and remainder.
    fn divided(&self, divisor: u32) -> (Self, u32) {
        match self {
            Self::Small(number) => {
                let divisor = u128::from(divisor);
                (Self::Small(number / divisor), (number % divisor) as u32)
            }
            Self::Large(limbs) => {
                let (mut limbs, mut rest) = (limbs.clone(), 0_u64);
                for limb in limbs.iter_mut().rev() {
                    let part = rest * BASE + u64::from(*limb);
                    *limb = (part / u64::from(divisor)) as u32;
                    rest = part % u64::from(divisor);
                }
                (Self::from_limbs(limbs), rest as u32)
            }
        }
    }

    fn plus(&self, other: &Self) -> Self {
        if let (Self::Small(a), Self::Small(b)) = (self, other)
            && let Some(sum) = a.checked_add(*b)
        {
            return Self::Small(sum);
        }
        let (mut a, b) = (self.limbs(), other.limbs());
        a.resize(a.len().max(b.len()) + 1, 0);
        let mut carry = 0_u64;
        for (index, limb) in a.iter_mut().enumerate() {
            let sum = u64::from(*limb) + u64::from(b.get(index).copied().unwrap_or(0)) + carry;
            *limb = (sum % BASE) as u32;
            carry = sum / BASE;
        }
        Self::from_limbs(a)
    }

    /// `self - other`, for a `self` at least as large.
    fn minus(&self, other: &Self) -> Self {
        if let (Self::Small(a), Self::Small(b)) = (self, other) {
            return Self::Small(a.saturating_sub(*b));
        }
        let (mut a, b) = (self.limbs(), other.limbs());
        let mut borrow = 0_i64;
        for (index, limb) in a.iter_mut().enumerate() {
            let mut part = i64::from(*limb) - i64::from(b.get(index).copied().unwrap_or(0)) - borrow;
            borrow = i64::from(part < 0);
            part += borrow * BASE as i64;
            *limb = part as u32;
        }
        Self::from_limbs(a)
    }

    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Small(a), Self::Small(b)) => a.cmp(b),
            (Self::Small(_), Self::Large(_)) => Ordering::Less,
            (Self::Large(_), Self::Small(_)) => Ordering::Greater,
            (Self::Large(a), Self::Large(b)) => a.len().cmp(&b.len()).then_with(|| a.iter().rev().cmp(b.iter().rev())),
        }
    }

    /// Number of decimal digits.
    fn digits(&self) -> i64 {
        match self {
            Self::Small(0) => 1,
            Self::Small(number) => i64::from(number.ilog10()) + 1,
            Self::Large(limbs) => {
                let top = limbs.last().copied().unwrap_or(1).max(1);
                (limbs.len() as i64 - 1) * 9 + i64::from(top.ilog10()) + 1
            }
        }
    }

    fn shifted(&self, by: u32) -> Self {
        if let Self::Small(number) = self
            && let Some(product) = 10_u128.checked_pow(by).and_then(|power| number.checked_mul(power))
        {
            return Self::Small(product);
        }
        let mut limbs = vec![0; by as usize / 9];
        limbs.extend(self.limbs());
        Self::Large(limbs).times(10_u32.pow(by % 9))
    }
}

impl std::fmt::Display for Magnitude {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Small(number) => write!(f, "{number}"),
            Self::Large(limbs) => {
                let mut limbs = limbs.iter().rev();
                if let Some(top) = limbs.next() {
                    write!(f, "{top}")?;
                }
                limbs.try_for_each(|limb| write!(f, "{limb:09}"))
            }
        }
    }
}

impl From<i64> for Decimal {
    fn from(number: i64) -> Self {
        let magnitude = Magnitude::Small(u128::from(number.unsigned_abs()));
        Self { negative: number < 0, magnitude, scale: 0 }
    }
}

impl Default for Decimal {
    fn default() -> Self {
        Self::from(0)
    }
}

/// Digits and sign, ready to print.
pub(super) struct Digits(bool, Magnitude);

impl std::fmt::Display for Digits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0 {
            f.write_str("-")?;
        }
        self.1.fmt(f)
    }
}

impl Decimal {
    /// From the digits before and after the point, which may both be empty.
    pub(super) fn from_digits(whole: &str, fraction: &str) -> Option<Self> {
        let scale = -i32::try_from(fraction.len()).ok()?;
        let mut small = Some(0_u128);
        for digit in whole.bytes().chain(fraction.bytes()) {
            if !digit.is_ascii_digit() {
                return None;
            }
            small = small.and_then(|sum| sum.checked_mul(10)?.checked_add(u128::from(digit - b'0')));
        }
        let magnitude = match small {
            Some(number) => Magnitude::Small(number),
            None => {
                let digits: Vec<u8> = whole.bytes().chain(fraction.bytes()).collect();
                let limb = |chunk: &[u8]| chunk.iter().fold(0_u32, |sum, digit| sum * 10 + u32::from(digit - b'0'));
                Magnitude::from_limbs(digits.rchunks(9).map(limb).collect())
            }
        };
        Some(Self { negative: false, magnitude, scale })
    }

    pub(super) fn scale(&self) -> i32 {
        self.scale
    }

    pub(super) fn is_zero(&self) -> bool {
        self.magnitude.is_zero()
    }

    pub(super) fn is_negative(&self) -> bool {
        self.negative && !self.is_zero()
    }

    /// Multiplies by `10^by`.
    pub(super) fn shift(&mut self, by: i32) {
        self.scale = self.scale.saturating_add(by);
    }

    pub(super) fn multiply_power_of_two(&mut self, power: u32) {
        for _ in 0..power / 16 {
            self.magnitude = self.magnitude.times(1 << 16);
        }
        self.magnitude = self.magnitude.times(1 << (power % 16));
    }

    pub(super) fn negated(mut self) -> Self {
        self.negative = !self.negative;
        self
    }

    pub(super) fn times(&self, factor: i64) -> Self {
        let magnitude = match &self.magnitude {
            Magnitude::Small(number) => number.checked_mul(u128::from(factor.unsigned_abs())).map(Magnitude::Small),
            Magnitude::Large(_) => None,
        };
        let magnitude = magnitude.unwrap_or_else(|| {
            let (factor, base) = (factor.unsigned_abs(), 1_u64 << 32);
            let high = self.magnitude.times((factor / base) as u32).times(1 << 16).times(1 << 16);
            high.plus(&self.magnitude.times((factor % base) as u32))
        });
        Self { negative: self.negative != (factor < 0), magnitude, scale: self.scale }
    }

    pub(super) fn plus(&self, other: &Self) -> Self {
        if self.is_zero() {
            return other.clone();
        }
        if other.is_zero() {
            return self.clone();
        }
        let (high, low) = if self.scale >= other.scale { (self, other) } else { (other, self) };
        let gap = i64::from(high.scale) - i64::from(low.scale);
        if gap > MAX_DIGITS {
            let larger = high.magnitude_cmp(low);
            return if larger == Ordering::Less { low.clone() } else { high.clone() };
        }
        let aligned = high.magnitude.shifted(gap as u32);
        let scale = low.scale;
        if high.negative == low.negative {
            return Self { negative: high.negative, magnitude: aligned.plus(&low.magnitude), scale };
        }
        match aligned.cmp(&low.magnitude) {
            Ordering::Less => Self { negative: low.negative, magnitude: low.magnitude.minus(&aligned), scale },
            _ => Self { negative: high.negative, magnitude: aligned.minus(&low.magnitude), scale },
        }
    }

    pub(super) fn magnitude_cmp(&self, other: &Self) -> Ordering {
        if self.is_zero() || other.is_zero() {
            return self.is_zero().cmp(&other.is_zero()).reverse();
        }
        let top = |decimal: &Self| decimal.magnitude.digits() + i64::from(decimal.scale);
        // With equal top places the scales differ by no more than the number of digits.
        top(self).cmp(&top(other)).then_with(|| match self.scale.cmp(&other.scale) {
            Ordering::Equal => self.magnitude.cmp(&other.magnitude),
            Ordering::Greater => self.magnitude.shifted(self.scale.abs_diff(other.scale)).cmp(&other.magnitude),
            Ordering::Less => self.magnitude.cmp(&other.magnitude.shifted(self.scale.abs_diff(other.scale))),
        })
    }

    /// Rounds away from zero to a multiple of `10^scale`; whether nothing was lost.
    pub(super) fn round_up(&self, scale: i32) -> (Self, bool) {
        if self.scale >= scale {
            return (self.clone(), true);
        }
        let drop = self.scale.abs_diff(scale);
        if i64::from(drop) >= self.magnitude.digits() {
            let exact = self.is_zero();
            let magnitude = Magnitude::Small(u128::from(!exact));
            return (Self { negative: self.negative, magnitude, scale }, exact);
        }
        let (mut magnitude, mut exact, mut left) = (self.magnitude.clone(), true, drop);
        while left > 0 {
            let step = left.min(9);
            let (quotient, remainder) = magnitude.divided(10_u32.pow(step));
            exact &= remainder == 0;
            magnitude = quotient;
            left -= step;
        }
        if !exact {
            magnitude = magnitude.plus(&Magnitude::Small(1));
        }
        (Self { negative: self.negative, magnitude, scale }, exact)
    }

    /// In units of `10^scale`, rounded away from zero; saturates.
    pub(super) fn to_i64(&self, scale: i32) -> i64 {
        let limit = if self.negative { i64::MIN } else { i64::MAX };
        if self.is_zero() {
            return 0;
        }
        let rounded = self.round_up(scale).0;
        let up = rounded.scale.abs_diff(scale);
        if up > 19 {
            return limit;
        }
        let Magnitude::Small(number) = rounded.magnitude.shifted(up) else { return limit };
        let Ok(number) = i128::try_from(number) else { return limit };
        i64::try_from(if self.negative { -number } else { number }).unwrap_or(limit)
    }

    pub(super) fn to_f64(&self) -> f64 {
        // Text is the one exact way to a float that the standard library offers.
        let text = format!("{}{}e{}", if self.negative { "-" } else { "" }, self.magnitude, self.scale);
        text.parse().unwrap_or(f64::NAN)
    }

    /// Digits and an exponent that is a multiple of three and at most `highest`, as large as possible.
    pub(super) fn in_thousands(&self, highest: i32) -> (Digits, i32) {
        let (mut magnitude, mut scale) = (self.magnitude.clone(), self.scale);
        loop {
            let (quotient, remainder) = magnitude.divided(10);
            if remainder != 0 || magnitude.is_zero() || scale == i32::MAX {
                break;
            }
            magnitude = quotient;
            scale += 1;
        }
        let target = (scale - scale.rem_euclid(3)).min(highest);
        let up = i64::from(scale) - i64::from(target);
        // A quantity so large that its suffix would need this many zeros is printed with an exponent.
        if up > MAX_DIGITS {
            let target = scale - scale.rem_euclid(3);
            return (Digits(self.negative, magnitude.shifted(scale.abs_diff(target))), target);
        }
        (Digits(self.negative, magnitude.shifted(up as u32)), target)
    }

    /// For a whole number: digits and how often 1024 was divided out, at most `most` times.
    pub(super) fn without_factors_of_1024(&self, most: usize) -> (Digits, usize) {
        let up = u32::try_from(self.scale.clamp(0, MAX_DIGITS as i32)).unwrap_or(0);
        let mut magnitude = self.magnitude.shifted(up);
        let mut times = 0;
        while times < most {
            let (quotient, remainder) = magnitude.divided(1024);
            if remainder != 0 {
                break;
            }
            magnitude = quotient;
            times += 1;
        }
        (Digits(self.negative, magnitude), times)
    }
}

impl PartialEq for Decimal {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Decimal {}

impl PartialOrd for Decimal {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Decimal {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self.is_negative(), other.is_negative()) {
            (false, true) => Ordering::Greater,
            (true, false) => Ordering::Less,
            (false, false) => self.magnitude_cmp(other),
            (true, true) => other.magnitude_cmp(self),
        }
    }
}
