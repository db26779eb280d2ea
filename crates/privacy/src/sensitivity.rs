//! Clip factors and the L2 sensitivity that is really charged, with every rounding error in it (rule G1).
//!
//! The clipped sum that leaves the engine is not `Σ c_i G_i` but a rounded version of it, and the norm
//! that decides `c_i` is rounded too. Both can be driven far off by an adversary who chooses the model:
//! two tokens with nearly opposite gradients have a ghost norm of 0 in f32 and a true norm of 100. This
//! module turns rounded norms into upper bounds, and the error of the sum into noise.
//!
//! Notation: per-sample gradient `G_i = Σ_t g_t x_tᵀ`, and `S_i ≥ Σ_t ‖x_t‖‖g_t‖ ≥ ‖G_i‖`, to which every
//! rounding error is proportional. Over several parameters, norms and `S` combine as square roots of
//! sums of squares; over several uses of one parameter, `S` adds up.
//!
//! A record's factor is one of three kinds, each with its guarantee in [`ClipRule`]: *flat* cuts the whole gradient to
//! C, *automatic* scales the whole gradient to nearly C, *per layer* cuts the part of each of K parameters to C/√K. In
//! all of them the clipped gradient of a record has norm at most C and cancellation at most κC over all parameters, so
//! that one account of the errors ([`SumError`]) serves all of them.

/// Largest magnitude that a row's norm may have. A sample with a larger (or non-finite) row counts as
/// zero, so that products of what is left neither overflow nor lose more than [`UNDERFLOW_ERROR`].
pub const MAGNITUDE_LIMIT: f64 = 9_223_372_036_854_775_808.0; // 2^63

/// What one product can lose to underflow in f32 with denormals flushed: `2^-126 · 2^63`, twice
/// (once where the clip factor scales a row, once in the contraction).
pub const UNDERFLOW_ERROR: f64 = 2.0 * f32::MIN_POSITIVE as f64 * MAGNITUDE_LIMIT;

/// γ_s of automatic clipping: `c_i = C/(‖G_i‖ + γ_s)`.
///
/// # References
/// Bu et al. 2022, Automatic Clipping, section 3.2 (AUTO-S, γ = 0.01), <https://arxiv.org/abs/2206.07136>.
pub const AUTOMATIC_STABILITY: f64 = 0.01;

/// Unit roundoff of IEEE binary32.
pub const UNIT_ROUNDOFF_F32: f64 = 1.0 / 16_777_216.0; // 2^-24

/// Unit roundoff of IEEE binary64.
pub const UNIT_ROUNDOFF_F64: f64 = f64::EPSILON / 2.0;

/// Underflow of one term of an f32 dot product with denormals flushed, in the product and in the running sum. Operands that are
/// denormal are read as zero on every path alike (norms, sums, their f64 forms), so the gradient bounded is that of such rows.
const FLUSHED: f64 = 2.0 * f32::MIN_POSITIVE as f64;

/// Covers the few f64 operations that compute norms' roots, factors and this module's own results.
const ARITHMETIC_SLACK: f64 = 1.0 / 1_099_511_627_776.0; // 2^-40

/// `γ_n = n·u / (1 − n·u)`: the relative error of a sum of products of `length` roundings in any order,
/// with or without fused multiply-add. Infinite once `n·u ≥ 1`.
///
/// # References
/// Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., Lemma 3.1 and section 3.5.
pub fn rounding_constant(length: u64, unit_roundoff: f64) -> f64 {
    let product = length as f64 * unit_roundoff;
    if product < 1.0 {
        product / (1.0 - product)
    } else {
        f64::INFINITY
    }
}

/// The rows of one parameter's gradient `Σ_t l_t r_tᵀ` for one record.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowNorms {
    /// `S_i = Σ_t ‖l_t‖‖r_t‖`.
    pub magnitude: f64,
    /// `Σ_t ‖l_t‖` and `Σ_t ‖r_t‖`.
    pub sums: [f64; 2],
}

/// How far Gram matrices of rows computed in f32 can be off.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GramRounding {
    /// Terms of one dot product of `l` and of one of `r`. Products of two dot products are summed in f64.
    pub widths: [u64; 2],
    /// f32 roundings that any term of such a dot product goes through, at most: as many as it has terms in any order of
    /// summation, fewer where the order is known or where pieces of it are added in f64.
    pub roundings: [u64; 2],
    /// γ of the f64 arithmetic on `S_i` and on the sum of products.
    pub sum: f64,
}

impl GramRounding {
    /// γ with which a computed `‖G_i‖² = Σ_st ⟨l_s, l_t⟩⟨r_s, r_t⟩` is off by at most `γ·S_i²`, underflow apart.
    ///
    /// A dot product whose terms go through at most n roundings each is off by at most `γ_n‖l_s‖‖l_t‖` (Higham, section
    /// 3.1, and Cauchy–Schwarz on `Σ|l||l|`), so a product of two by `(γ_a + γ_b + γ_aγ_b)‖l_s‖‖l_t‖‖r_s‖‖r_t‖`, and over
    /// all s and t these add up to S_i². Where pieces are added in f64, n is that of a piece: `Σ_k ‖l_s^k‖‖l_t^k‖ ≤
    /// ‖l_s‖‖l_t‖`.
    pub fn constant(&self) -> f64 {
        let [left, right] = self
            .roundings
            .map(|roundings| rounding_constant(roundings, UNIT_ROUNDOFF_F32));
        (left + right + left * right) * (1.0 + self.sum) + self.sum
    }

    /// What underflow can take from one dot product of `l` and from one of `r`.
    pub fn flushed(&self) -> [f64; 2] {
        self.widths.map(|width| width as f64 * FLUSHED)
    }

    /// Norms that are roots of a Gram matrix's diagonal, and products of two of them, exceed the true ones after
    /// multiplication with this, once [`Self::flushed`] was added to the diagonal: `⟨l, l⟩` is off by at most
    /// `γ_n‖l‖²`.
    pub fn diagonal_allowance(&self) -> f64 {
        1.0 / (1.0 - self.constant())
    }

    /// An upper bound of the true `‖G_i‖²` from a computed one, which may even be negative: G1's
    /// `(n̂_i + γS_i)²` with `n̂_i = sqrt(max(0, norm²) + γS_i²)`, and what underflow may have hidden.
    ///
    /// With denormals flushed a dot product can lose w·2^-125, whatever S_i is: rows of norm 1e-19 have Gram matrices
    /// of zero, and times output gradients of norm 1e19 they are a gradient of norm 1. What is lost is multiplied with
    /// the other Gram matrix, at most `(Σ_t ‖r_t‖)²` in sum.
    ///
    /// Infinite when `computed` is not finite.
    pub fn squared_bound(&self, computed: f64, rows: &RowNorms) -> f64 {
        if !computed.is_finite() {
            return f64::INFINITY;
        }
        let gamma = self.constant();
        let [left, right] = self.flushed();
        let [sum_left, sum_right] = rows.sums;
        let lost = left * sum_right * sum_right + right * sum_left * sum_left;
        let bound = computed.max(0.0) + gamma * rows.magnitude * rows.magnitude + 2.0 * lost;
        (bound.sqrt() + gamma * rows.magnitude).powi(2)
    }
}

/// Why a [`ClipRule`] cannot exist.
#[derive(Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum ClipRuleError {
    /// The clipping norm is not a positive finite number.
    #[error("max_grad_norm must be positive and finite, not {0}")]
    MaxGradNorm(f64),
    /// The rounding constant of the norms is not in `[0, 1)`: sums are too long for their precision.
    #[error("rounding constant of the norms must be in [0, 1), not {0}: compute norms in f64")]
    NormRounding(f64),
    /// κ below 1 would clip samples that need no clipping.
    #[error("the bound on cancellation must be at least 1, not {0}")]
    Cancellation(f64),
}

/// Clipping of per-sample gradients, or of their parts, by norms known only up to rounding. Flat, unless made otherwise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClipRule {
    max_grad_norm: f64,
    norm_rounding: f64,
    cancellation: f64,
    /// γ_s, when gradients are scaled to C and not only cut to it.
    stability: Option<f64>,
}

impl ClipRule {
    /// `max_grad_norm`: C. `norm_rounding`: γ such that a computed `‖G_i‖²` is off by at most `γ·S_i²`.
    /// `cancellation`: κ, the most by which `c_i·S_i` may exceed C; it bounds the error of the sum.
    ///
    /// # Errors
    /// [`ClipRuleError`] when a number is out of its range.
    pub fn new(max_grad_norm: f64, norm_rounding: f64, cancellation: f64) -> Result<Self, ClipRuleError> {
        if !(max_grad_norm > 0.0 && max_grad_norm.is_finite()) {
            return Err(ClipRuleError::MaxGradNorm(max_grad_norm));
        }
        if !(0.0..1.0).contains(&norm_rounding) {
            return Err(ClipRuleError::NormRounding(norm_rounding));
        }
        if !(cancellation >= 1.0 && cancellation.is_finite()) {
            return Err(ClipRuleError::Cancellation(cancellation));
        }
        Ok(Self {
            max_grad_norm,
            norm_rounding,
            cancellation,
            stability: None,
        })
    }

    /// Scales every gradient to nearly C, small ones up: `c_i = min(C/(n̂_i + γS_i + γ_s), κC/S_i)`, γ_s being
    /// [`AUTOMATIC_STABILITY`]. Still `c_i·‖G_i‖ < C`, since `n̂_i + γS_i ≥ ‖G_i‖`.
    #[must_use]
    pub fn automatic(self) -> Self {
        Self {
            stability: Some(AUTOMATIC_STABILITY),
            ..self
        }
    }

    /// The rule for one of `parameters` parts of a gradient, each clipped by its own norm: C/√K for C. Together the
    /// clipped parts have norm `√(Σ_k (C/√K)²) = C` at most, and likewise `√(Σ_k (c_ik·S_ik)²) ≤ κC`.
    #[must_use]
    pub fn per_layer(self, parameters: usize) -> Self {
        Self {
            max_grad_norm: self.max_grad_norm / (parameters.max(1) as f64).sqrt(),
            ..self
        }
    }

    /// C, or C/√K.
    pub fn max_grad_norm(&self) -> f64 {
        self.max_grad_norm
    }

    /// κ.
    pub fn cancellation(&self) -> f64 {
        self.cancellation
    }

    /// An upper bound `n̂_i = sqrt(max(0, norm²) + γ·S_i²)` of the true norm, from a computed `norm²`
    /// that may even be negative.
    pub fn norm_bound(&self, computed_norm_squared: f64, magnitude: f64) -> f64 {
        (computed_norm_squared.max(0.0) + self.norm_rounding * magnitude * magnitude).sqrt()
    }

    /// The clip factor `c_i = min(1, C/(n̂_i + γ·S_i), κ·C/S_i)`, rounded down to an f32 and never subnormal,
    /// so that scaling by it in f32 or f64 is scaling by exactly this number. Automatic clipping has no limit of 1, but
    /// one of [`MAGNITUDE_LIMIT`], so that a scaled row stays below 2^126.
    ///
    /// # Guarantee
    /// `c_i·‖G_i‖ ≤ C` and `c_i·S_i ≤ κ·C` (up to [`charged_sensitivity`]'s 2^-40), when the computed norm is off
    /// by at most `γ·S_i²`.
    ///
    /// | input | factor |
    /// | --- | --- |
    /// | `S_i = 0` | 1, or C/γ_s: the sample adds zero |
    /// | NaN or infinite norm or `S_i` | 0 |
    pub fn factor(&self, computed_norm_squared: f64, magnitude: f64) -> f64 {
        if !computed_norm_squared.is_finite() || !magnitude.is_finite() || magnitude < 0.0 {
            return 0.0;
        }
        let bound = self.norm_bound(computed_norm_squared, magnitude) + self.norm_rounding * magnitude;
        if !bound.is_finite() {
            return 0.0;
        }
        let (stability, most) = self
            .stability
            .map_or((0.0, 1.0), |stability| (stability, MAGNITUDE_LIMIT));
        let by_norm = self.max_grad_norm / (bound + stability).max(f64::MIN_POSITIVE);
        let by_magnitude = self.cancellation * self.max_grad_norm / magnitude.max(f64::MIN_POSITIVE);
        round_down_to_f32(by_norm.min(by_magnitude).min(most))
    }
}

/// One kind of contraction `Σ_i c_i Σ_t g_t x_tᵀ` that a step runs: matrix products over blocks of rows, some of which
/// are added up before the sum is moved to the integer grid.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Contraction {
    /// Rows of one matrix product.
    pub rows: u64,
    /// Records with rows in one product. Where a record's rows are spread over several products, each has rows of this
    /// record only, and this is 1.
    pub records: u64,
    /// Products added up before the sum is moved to the grid.
    pub products: u64,
    /// Precision of products and additions.
    pub unit_roundoff: f64,
    /// Bound on `c_i·S_i/C`: 1 where each sample has one row (there `S_i = ‖G_i‖`), κ elsewhere.
    pub cancellation: f64,
}

impl Contraction {
    /// By how much rounding can change, over C, when one record comes or goes.
    ///
    /// Only products with rows of that record change; the others are functions of rows that stay, bit for bit (rule
    /// T2). Of a product of r records, with n additions, the product and the scaling of a row by `c_i`, the error is
    /// at most `γ_{n+2}·Σ_i c_i S_i ≤ γ_{n+2}·rκC`, and without the record `γ_{n+2}·(r − 1)κC`. The K − 1 additions
    /// of products `P_k` may all round otherwise: `γ_{K−1}·Σ_k ‖P_k‖ ≤ γ_{K−1}·(1 + γ_{n+2})·KrκC`, with and without.
    pub fn rounding_share(&self) -> f64 {
        let products = self.products.max(1);
        let product = rounding_constant(self.rows.saturating_add(2), self.unit_roundoff);
        let addition = rounding_constant(products - 1, self.unit_roundoff) * (1.0 + product);
        let records = self.records.max(1) as f64;
        let affected = (2.0 * records - 1.0) * product + 2.0 * addition * products as f64 * records;
        affected * self.cancellation
    }
}

/// Everything that makes a step's integer sum differ from the exact sum of clipped gradients.
#[derive(Clone, Debug, PartialEq)]
pub struct SumError {
    /// C.
    pub max_grad_norm: f64,
    /// Most rows over all records of a step (records × rows per record).
    pub rows: u64,
    /// Number of coordinates of the sum: all trainable parameters.
    pub coordinates: u64,
    /// Width of the integer grid.
    pub grid: f64,
    /// How many partial sums a coordinate of a step is made of, each rounded to the grid.
    pub grid_roundings: u64,
    /// The contractions, one of each kind; their errors concern different coordinates.
    pub contractions: Vec<Contraction>,
}

impl SumError {
    /// Bound on the change of `computed sum − Σ c_i G_i` in L2, between any two neighbours.
    ///
    /// Over the uses and parameters of one kind `γ·c_i S_i` adds up to no more than that of the whole gradient, by
    /// what S_i is; with a factor for each parameter it is `√(Σ_k (γ·Σ_i c_ik S_ik)²)`, whose summands are at most
    /// `γ·rκC/√K`. Kinds are simply added.
    pub fn change(&self) -> f64 {
        let dimension = (self.coordinates as f64).sqrt();
        let shares: f64 = self.contractions.iter().map(Contraction::rounding_share).sum();
        let grid = self.grid_roundings as f64 * dimension * self.grid;
        // A flushed element is lost times the factor of its row, which automatic clipping may make as large as C/γ_s.
        let largest_factor = 1.0 + self.max_grad_norm / AUTOMATIC_STABILITY;
        let underflow = 2.0
            * self.rows as f64
            * dimension
            * UNDERFLOW_ERROR
            * largest_factor
            * f64::from(u8::from(!self.contractions.is_empty()));
        shares * self.max_grad_norm + grid + underflow
    }
}

/// The L2 sensitivity Δ of the engine's integer sum under adding or removing one record.
///
/// # Guarantee
/// For neighbours D and D′ whose samples are within the cap, `‖sum(D) − sum(D′)‖₂ ≤ Δ`: the exact sums
/// differ by one term of norm at most C, and the rounding errors by at most [`SumError::change`], so
/// `Δ = C + change`, and 2^-40 of it for the arithmetic of the factors themselves.
///
/// # References
/// soundness.md, rule G1; dp.md, rule 8.
pub fn charged_sensitivity(error: &SumError) -> f64 {
    (error.max_grad_norm + error.change()) * (1.0 + ARITHMETIC_SLACK)
}

/// The largest f32 not above a non-negative value; zero instead of a subnormal (they are flushed).
fn round_down_to_f32(value: f64) -> f64 {
    let nearest = value as f32;
    let down = if f64::from(nearest) > value {
        nearest.next_down()
    } else {
        nearest
    };
    if down < f32::MIN_POSITIVE {
        0.0
    } else {
        f64::from(down)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Soundness G1: x1 = x2 = a·u, g1 = b·v + δ·w, g2 = −b·v; the true norm is a·δ = 100.
    fn adversarial_pair() -> ([[f32; 4]; 2], [[f32; 4]; 2]) {
        let (a, b, delta) = (1e3, 1e3, 0.1);
        (
            [[a, 0.0, 0.0, 0.0]; 2],
            [[b, delta, 0.0, 0.0], [-b, 0.0, 0.0, 0.0]],
        )
    }

    fn dot(left: &[f32; 4], right: &[f32; 4]) -> f32 {
        left.iter().zip(right).map(|(l, r)| l * r).sum()
    }

    fn length(row: &[f32; 4]) -> f64 {
        row.iter()
            .map(|&value| f64::from(value) * f64::from(value))
            .sum::<f64>()
            .sqrt()
    }

    fn ghost_norm_squared_f32(x: &[[f32; 4]; 2], g: &[[f32; 4]; 2]) -> f64 {
        let mut sum = 0.0f32;
        for s in 0..2 {
            for t in 0..2 {
                sum += dot(&x[s], &x[t]) * dot(&g[s], &g[t]);
            }
        }
        f64::from(sum)
    }

    #[test]
    fn cancelling_tokens_cannot_hide_their_norm_in_f32() {
        let (x, g) = adversarial_pair();
        let computed = ghost_norm_squared_f32(&x, &g);
        let true_norm = 100.0;
        assert!(
            computed.max(0.0).sqrt() < 0.5 * true_norm,
            "the attack needs the ghost norm to be wrong: {computed}"
        );
        let magnitude = (0..2).map(|t| length(&x[t]) * length(&g[t])).sum::<f64>();
        let gamma = rounding_constant(4 + 4 + 4 + 2, UNIT_ROUNDOFF_F32);
        let rule = ClipRule::new(1.0, gamma, 1024.0).unwrap();
        assert!(rule.norm_bound(computed, magnitude) >= true_norm);
        assert!(rule.factor(computed, magnitude) * true_norm <= 1.0);
    }

    /// Magnitude and sums of norms of `Σ_t l_t r_tᵀ`.
    fn rows_of(x: &[[f32; 4]; 2], g: &[[f32; 4]; 2]) -> RowNorms {
        let all = |rows: &[[f32; 4]; 2]| rows.iter().map(length).sum::<f64>();
        RowNorms {
            magnitude: (0..2).map(|t| length(&x[t]) * length(&g[t])).sum(),
            sums: [all(x), all(g)],
        }
    }

    /// As the engine does: dot products in f32, their products in f64.
    fn ghost_norm_squared(x: &[[f32; 4]; 2], g: &[[f32; 4]; 2]) -> f64 {
        let pairs = (0..4).map(|at| (at / 2, at % 2));
        pairs
            .map(|(s, t)| f64::from(dot(&x[s], &x[t])) * f64::from(dot(&g[s], &g[t])))
            .sum()
    }

    const FOUR: GramRounding = GramRounding {
        widths: [4, 4],
        roundings: [4, 4],
        sum: 1e-14,
    };

    #[test]
    fn cancelling_tokens_cannot_hide_their_norm_in_an_f32_gram_matrix() {
        let (x, g) = adversarial_pair();
        let computed = ghost_norm_squared(&x, &g);
        assert!(
            computed.max(0.0).sqrt() < 50.0,
            "the attack needs the ghost norm to be wrong: {computed}"
        );
        assert!(FOUR.squared_bound(computed, &rows_of(&x, &g)) >= 100.0f64.powi(2));
    }

    #[test]
    fn rows_too_small_for_an_f32_gram_matrix_cannot_hide_behind_huge_gradients() {
        let (x, g) = ([[1e-19, 0.0, 0.0, 0.0]; 2], [[5e18, 0.0, 0.0, 0.0]; 2]);
        let flushed = |value: f32| if value.is_normal() { f64::from(value) } else { 0.0 };
        let computed = 4.0 * flushed(dot(&x[0], &x[0])) * f64::from(dot(&g[0], &g[0]));
        assert_eq!(computed, 0.0, "the attack needs the Gram matrix to vanish");
        let rows = rows_of(&x, &g);
        assert!(
            FOUR.constant() * rows.magnitude.powi(2) < 0.1,
            "γS² alone would not do"
        );
        assert!(FOUR.squared_bound(computed, &rows) >= 1.0, "the true norm is 1");
    }

    #[test]
    fn a_gram_norm_that_is_not_a_number_bounds_nothing() {
        let rows = RowNorms {
            magnitude: 1.0,
            sums: [1.0, 1.0],
        };
        for computed in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!(FOUR.squared_bound(computed, &rows), f64::INFINITY);
        }
    }

    #[test]
    fn without_the_rounding_term_the_attack_would_succeed() {
        let (x, g) = adversarial_pair();
        let computed = ghost_norm_squared_f32(&x, &g);
        let naive = ClipRule::new(1.0, 0.0, 1e12).unwrap();
        assert!(
            naive.factor(computed, 1e6) * 100.0 > 1.5,
            "the naive rule lets through more than C"
        );
    }

    #[test]
    fn a_negative_ghost_norm_is_clipped_by_its_rounding_bound() {
        let gamma = rounding_constant(14, UNIT_ROUNDOFF_F32);
        let rule = ClipRule::new(1.0, gamma, 1024.0).unwrap();
        assert!(rule.norm_bound(-8.0, 2e6) >= 100.0);
    }

    #[test]
    fn a_factor_never_lets_a_sample_above_the_clipping_norm() {
        let rule = ClipRule::new(0.7, rounding_constant(2000, UNIT_ROUNDOFF_F64), 64.0).unwrap();
        for exponent in -300..150 {
            let norm = 10f64.powi(exponent);
            let factor = rule.factor(norm * norm, norm);
            assert!(factor * norm <= 0.7, "norm {norm:e}");
            assert_eq!(factor, f64::from(factor as f32), "a factor is an f32");
        }
    }

    #[test]
    fn cancellation_is_bounded_for_every_sample() {
        let rule = ClipRule::new(1.0, 0.0, 8.0).unwrap();
        for magnitude in [1.0, 8.0, 80.0, 1e30] {
            assert!(rule.factor(0.25, magnitude) * magnitude <= 8.0);
        }
        assert_eq!(rule.factor(0.25, 4.0), 1.0);
    }

    #[test]
    fn non_finite_norms_count_as_zero_and_zero_gradients_pass() {
        let rule = ClipRule::new(1.0, 1e-6, 8.0).unwrap();
        for (norm_squared, magnitude) in [
            (f64::NAN, 1.0),
            (1.0, f64::NAN),
            (f64::INFINITY, 1.0),
            (1.0, f64::INFINITY),
            (1.0, -1.0),
            (1.0, 1e300),
        ] {
            let factor = rule.factor(norm_squared, magnitude);
            assert!(factor == 0.0, "{norm_squared} {magnitude} gave {factor}");
        }
        assert_eq!(rule.factor(0.0, 0.0), 1.0);
    }

    /// Rows of one parameter's gradient, whose norm² is then told wrongly by up to γS².
    type Part = (Vec<f64>, f64, f64);

    fn parts() -> impl Strategy<Value = Vec<Part>> {
        let row =
            (-12i32..20).prop_flat_map(|scale| (-1.0..1.0f64).prop_map(move |unit| unit * 10f64.powi(scale)));
        // The magnitude exceeds the norm where rows cancel; the error of the norm is a share of γS².
        let part = (prop::collection::vec(row, 1..5), 1.0..1e4f64, -1.0..1.0f64);
        prop::collection::vec(part, 1..6)
    }

    fn norm(values: &[f64]) -> f64 {
        values.iter().map(|value| value * value).sum::<f64>().sqrt()
    }

    proptest! {
        #[test]
        fn no_rule_lets_a_gradient_above_c_nor_its_cancellation_above_kappa_c(parts in parts(), c in 1e-3..1e3f64) {
            let (gamma, kappa) = (1e-9, 64.0);
            let rule = ClipRule::new(c, gamma, kappa).unwrap();
            let true_norms: Vec<f64> = parts.iter().map(|(rows, ..)| norm(rows)).collect();
            let magnitudes: Vec<f64> = parts.iter().zip(&true_norms).map(|((_, more, _), own)| own * more).collect();
            let told = |norm: f64, magnitude: f64, error: f64| norm * norm + error * gamma * magnitude * magnitude;
            let slack = 1.0 + 1e-12;
            for whole in [rule, rule.automatic()] {
                let (own, magnitude) = (norm(&true_norms), norm(&magnitudes));
                let factor = whole.factor(told(own, magnitude, parts[0].2), magnitude);
                prop_assert!(factor * own <= c * slack, "{factor} · {own}");
                prop_assert!(factor * magnitude <= kappa * c * slack);
            }
            let layer = rule.per_layer(parts.len());
            let factors = (0..parts.len())
                .map(|k| layer.factor(told(true_norms[k], magnitudes[k], parts[k].2), magnitudes[k]));
            let factors: Vec<f64> = factors.collect();
            let scaled = |of: &[f64]| norm(&of.iter().zip(&factors).map(|(one, factor)| one * factor).collect::<Vec<_>>());
            prop_assert!(scaled(&true_norms) <= c * slack);
            prop_assert!(scaled(&magnitudes) <= kappa * c * slack);
        }
    }

    #[test]
    fn automatic_clipping_scales_small_gradients_up_and_never_to_c() {
        let rule = ClipRule::new(2.0, 0.0, 1024.0).unwrap().automatic();
        for norm in [0.0, 1e-9, 1e-2, 1.0, 1e6] {
            let exact = 2.0 / (norm + 0.01);
            let factor = rule.factor(norm * norm, norm);
            assert!(
                (factor / exact - 1.0).abs() < 1e-6,
                "norm {norm}: {factor} for {exact}"
            );
            assert!(factor * norm < 2.0);
        }
    }

    #[test]
    fn an_automatic_factor_keeps_every_scaled_row_finite_in_f32() {
        let rule = ClipRule::new(1e30, 0.0, 1024.0).unwrap().automatic();
        for norm in [0.0, 1e-30, 1.0] {
            let scaled = rule.factor(norm * norm, norm) * MAGNITUDE_LIMIT;
            assert!((scaled as f32).is_finite(), "norm {norm}: {scaled}");
        }
    }

    #[test]
    fn a_layers_share_of_the_clipping_norm_is_its_part_of_the_square() {
        let rule = ClipRule::new(3.0, 0.0, 1.0).unwrap();
        assert_eq!(rule.per_layer(1), rule);
        assert_eq!(rule.per_layer(9).max_grad_norm(), 1.0);
        let share = rule.per_layer(7).max_grad_norm();
        assert!((7.0 * share * share - 9.0).abs() < 1e-14);
    }

    #[test]
    fn charged_sensitivity_grows_with_every_source_of_error() {
        let contraction = Contraction {
            rows: 256,
            records: 256,
            products: 1,
            unit_roundoff: UNIT_ROUNDOFF_F32,
            cancellation: 1.0,
        };
        let base = SumError {
            max_grad_norm: 1.0,
            rows: 256,
            coordinates: 1_000_000,
            grid: 2f64.powi(-30),
            grid_roundings: 1,
            contractions: vec![contraction],
        };
        let charged = charged_sensitivity(&base);
        assert!(
            charged > 1.0 && charged < 1.01,
            "256 records in f32 cost under 1%: {charged}"
        );
        let more_roundings = SumError {
            grid_roundings: 100,
            ..base.clone()
        };
        let contracting = |changed: Contraction| SumError {
            contractions: vec![changed],
            ..base.clone()
        };
        let more_records = contracting(Contraction {
            records: 512,
            ..contraction
        });
        let more_rows = contracting(Contraction {
            rows: 512,
            ..contraction
        });
        let more_products = contracting(Contraction {
            products: 2,
            ..contraction
        });
        let more_cancellation = contracting(Contraction {
            cancellation: 4.0,
            ..contraction
        });
        for worse in [
            more_records,
            more_rows,
            more_products,
            more_roundings,
            more_cancellation,
        ] {
            assert!(charged_sensitivity(&worse) > charged);
        }
    }

    #[test]
    fn a_product_of_one_record_is_charged_once_for_it_is_gone_without_the_record() {
        let alone = Contraction {
            rows: 126,
            records: 1,
            products: 1,
            unit_roundoff: UNIT_ROUNDOFF_F32,
            cancellation: 32.0,
        };
        let once = 32.0 * rounding_constant(128, UNIT_ROUNDOFF_F32);
        assert_eq!(alone.rounding_share(), once);
        let four = Contraction { records: 4, ..alone };
        assert_eq!(four.rounding_share(), 7.0 * once);
    }

    #[test]
    fn a_sum_too_long_for_its_precision_has_no_finite_sensitivity() {
        let rounding = rounding_constant(1 << 24, UNIT_ROUNDOFF_F32);
        assert!(rounding.is_infinite());
    }

    #[test]
    fn rules_out_of_range_are_refused() {
        assert_eq!(ClipRule::new(0.0, 0.0, 1.0), Err(ClipRuleError::MaxGradNorm(0.0)));
        assert!(ClipRule::new(f64::NAN, 0.0, 1.0).is_err());
        assert_eq!(
            ClipRule::new(1.0, 1.0, 1.0),
            Err(ClipRuleError::NormRounding(1.0))
        );
        assert_eq!(
            ClipRule::new(1.0, 0.0, 0.5),
            Err(ClipRuleError::Cancellation(0.5))
        );
    }
}
