//! Unsigned fixed-point numbers of 320 fraction bits, just what the finest noise path needs. Slow: it runs about once in
//! a billion values.

/// Little-endian limbs; the last is the integer part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Fixed(Limbs);

/// Compared from the integer part down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limbs([u64; LIMBS]);

impl PartialOrd for Limbs {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Limbs {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.iter().rev().cmp(other.0.iter().rev())
    }
}

impl Fixed {
    pub(super) const ZERO: Self = Self(Limbs([0; LIMBS]));

    pub(super) const fn integer(value: u64) -> Self {
        Self(Limbs([0, 0, 0, 0, 0, value]))
    }

    /// `words`/2^192 plus half a unit; the last word is the highest.
    pub(super) const fn from_fraction(words: [u64; 3]) -> Self {
        Self(Limbs([0, 1 << 63, words[0], words[1], words[2], 0]))
    }

    /// A number in [0, 2^64), exactly but for bits below 2^−320.
    pub(super) fn from_f64(value: f64) -> Self {
        let mut limbs = [0; LIMBS];
        let mut rest = value;
        for limb in limbs.iter_mut().rev() {
            let whole = rest.trunc();
            *limb = whole as u64;
            // Exact: a power of two times what is left of 53 bits.
            rest = (rest - whole) * TWO_TO_64;
        }
        Self(Limbs(limbs))
    }

    /// To 50 bits or better.
    pub(super) fn to_f64(self) -> f64 {
        let (mut value, mut unit) = (0.0, 1.0);
        for limb in self.limbs().iter().rev() {
            value += *limb as f64 * unit;
            unit /= TWO_TO_64;
        }
        value
    }

    pub(super) fn is_zero(self) -> bool {
        self == Self::ZERO
    }

    /// The integer part.
    pub(super) const fn floor(self) -> u64 {
        self.limbs()[LIMBS - 1]
    }

    pub(super) fn add(self, other: Self) -> Self {
        let (mut sum, mut carry) = ([0; LIMBS], false);
        for (index, limb) in sum.iter_mut().enumerate() {
            let (partial, first) = self.limbs()[index].overflowing_add(other.limbs()[index]);
            let (whole, second) = partial.overflowing_add(u64::from(carry));
            (*limb, carry) = (whole, first | second);
        }
        Self(Limbs(sum))
    }

    /// self − other, of a smaller other.
    pub(super) fn subtract(self, other: Self) -> Self {
        let (mut difference, mut borrow) = ([0; LIMBS], false);
        for (index, limb) in difference.iter_mut().enumerate() {
            let (partial, first) = self.limbs()[index].overflowing_sub(other.limbs()[index]);
            let (whole, second) = partial.overflowing_sub(u64::from(borrow));
            (*limb, borrow) = (whole, first | second);
        }
        Self(Limbs(difference))
    }

    /// |self − other|, and whether self is the smaller.
    pub(super) fn distance(self, other: Self) -> (Self, bool) {
        if self < other {
            (other.subtract(self), true)
        } else {
            (self.subtract(other), false)
        }
    }

    /// Rounded down.
    pub(super) fn multiply(self, other: Self) -> Self {
        let mut product = [0_u64; 2 * LIMBS];
        for (low, &one) in self.limbs().iter().enumerate() {
            let mut carry = 0_u128;
            for (high, &two) in other.limbs().iter().enumerate() {
                let sum = u128::from(one) * u128::from(two) + u128::from(product[low + high]) + carry;
                product[low + high] = sum as u64;
                carry = sum >> 64;
            }
            product[low + LIMBS] = carry as u64;
        }
        let mut limbs = [0; LIMBS];
        limbs.copy_from_slice(&product[LIMBS - 1..2 * LIMBS - 1]);
        Self(Limbs(limbs))
    }

    pub(super) fn times(self, factor: u64) -> Self {
        self.multiply(Self::integer(factor))
    }

    /// Rounded down.
    pub(super) fn over(self, divisor: u64) -> Self {
        let (mut quotient, mut rest) = ([0; LIMBS], 0_u128);
        for index in (0..LIMBS).rev() {
            let part = (rest << 64) | u128::from(self.limbs()[index]);
            quotient[index] = (part / u128::from(divisor)) as u64;
            rest = part % u128::from(divisor);
        }
        Self(Limbs(quotient))
    }

    /// self / divisor, rounded down: bit by bit, of numbers whose ratio is below 2^64.
    pub(super) fn divide(self, divisor: Self) -> Self {
        let (mut quotient, mut rest) = ([0_u64; LIMBS], Self::ZERO);
        for bit in (0..64 * (2 * LIMBS - 1)).rev() {
            let next = match bit.checked_sub(64 * (LIMBS - 1)) {
                Some(own) => self.limbs()[own / 64] >> (own % 64) & 1,
                None => 0,
            };
            rest = rest.doubled();
            rest.0.0[0] |= next;
            if rest >= divisor {
                rest = rest.subtract(divisor);
                quotient[bit / 64] |= 1 << (bit % 64);
            }
        }
        Self(Limbs(quotient))
    }

    /// √self by Newton from f64, whose 50 bits are 100, 200 and 400 after three steps; 0 of 0.
    pub(super) fn square_root(self) -> Self {
        if self.is_zero() {
            return self;
        }
        let mut root = Self::from_f64(self.to_f64().sqrt());
        for _ in 0..3 {
            root = root.add(self.divide(root)).over(2);
        }
        root
    }

    /// Bits by which a number in (0, 1) is below [½, 1), and the number moved there.
    pub(super) fn normalised(self) -> (u64, Self) {
        let (mut moved, mut bits) = (self, 0);
        while moved.limbs()[LIMBS - 2] >> 63 == 0 {
            (moved, bits) = (moved.doubled(), bits + 1);
        }
        (bits, moved)
    }

    fn doubled(self) -> Self {
        self.add(self)
    }

    const fn limbs(&self) -> &[u64; LIMBS] {
        &self.0.0
    }
}

const LIMBS: usize = 6;
const TWO_TO_64: f64 = 18_446_744_073_709_551_616.0;
