//! Confidence bounds, written apart from `bastionai_privacy`: an auditor shares no arithmetic with the audited.

/// Tails of binomial distributions with up to `trials` trials.
pub(crate) struct Binomials {
    log_factorials: Vec<f64>,
}

impl Binomials {
    pub(crate) fn new(trials: usize) -> Self {
        let mut log_factorials = vec![0.0];
        let mut sum = 0.0;
        for each in 1..=trials {
            sum += (each as f64).ln();
            log_factorials.push(sum);
        }
        Self { log_factorials }
    }

    fn mass(&self, trials: usize, successes: usize, p: f64) -> f64 {
        let failures = trials - successes;
        let of = |count: usize, p: f64| if count == 0 { 0.0 } else { count as f64 * p.ln() };
        let ways =
            self.log_factorials[trials] - self.log_factorials[successes] - self.log_factorials[failures];
        (ways + of(successes, p) + of(failures, 1.0 - p)).exp()
    }

    /// P[X ≥ successes].
    pub(crate) fn at_least(&self, trials: usize, successes: usize, p: f64) -> f64 {
        let tail = (successes..=trials).map(|each| self.mass(trials, each, p));
        tail.sum::<f64>().min(1.0)
    }

    /// Clopper and Pearson 1934: a probability that is above the true one with probability `failure` at most.
    pub(crate) fn lower(&self, successes: usize, trials: usize, failure: f64) -> f64 {
        if successes == 0 {
            return 0.0;
        }
        bisect(0.0, 1.0, |p| self.at_least(trials, successes, p) < failure)
    }

    /// The same from above.
    pub(crate) fn upper(&self, successes: usize, trials: usize, failure: f64) -> f64 {
        1.0 - self.lower(trials - successes, trials, failure)
    }

    /// Steinke, Nasr and Jagielski 2023, theorem 5.2 (arXiv 2305.08846): the probability, at most, that an (ε, δ)-private
    /// training lets `correct` or more of `guesses` guesses at the coins of `canaries` canaries be right.
    pub(crate) fn one_run_p_value(&self, run: &OneRun, epsilon: f64, delta: f64) -> f64 {
        let right = 1.0 / (1.0 + (-epsilon).exp());
        let (guesses, correct) = (run.guesses, run.correct);
        let mut below = 0.0;
        let mut alpha = 0.0f64;
        for each in 1..=correct {
            below += self.mass(guesses, correct - each, right);
            alpha = alpha.max(2.0 * below / each as f64);
        }
        let beta = self.at_least(guesses, correct, right);
        (beta + alpha * delta * run.canaries as f64).min(1.0)
    }

    /// The ε that the training exceeds, but for a probability of `failure`; 0 when nothing can be said.
    pub(crate) fn one_run_epsilon(&self, run: &OneRun, delta: f64, failure: f64) -> f64 {
        bisect(0.0, 30.0, |epsilon| {
            self.one_run_p_value(run, epsilon, delta) < failure
        })
    }

    /// The ε that two mechanisms' outputs exceed at `delta`: an event seen `hits` times under one, `misses` times under the
    /// other, each of `trials` times. Fails with probability 2·`failure` at most; 0 when nothing can be said.
    pub(crate) fn epsilon(&self, hits: usize, misses: usize, trials: usize, delta: f64, failure: f64) -> f64 {
        let often = self.lower(hits, trials, failure) - delta;
        let seldom = self.upper(misses, trials, failure);
        (often.max(0.0) / seldom).ln().max(0.0)
    }
}

/// A whole training audited at once.
pub(crate) struct OneRun {
    pub(crate) canaries: usize,
    pub(crate) guesses: usize,
    pub(crate) correct: usize,
}

/// The point where `holds` stops, given that it holds below it and nowhere above; the lower end if it never does.
fn bisect(mut low: f64, mut high: f64, holds: impl Fn(f64) -> bool) -> f64 {
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if holds(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    low
}

/// P[N(0,1) > x].
pub(crate) fn normal_tail(x: f64) -> f64 {
    0.5 * libm::erfc(x / std::f64::consts::SQRT_2)
}

/// Σ z² of independent standard scores is χ²: within five standard deviations of its mean, and no score beyond six.
pub(crate) fn assert_chi_squared(what: &str, scores: impl Iterator<Item = f64>) {
    let scores: Vec<f64> = scores.collect();
    let (n, sum) = (scores.len() as f64, scores.iter().map(|z| z * z).sum::<f64>());
    assert!(
        (sum - n).abs() < 5.0 * (2.0 * n).sqrt() + 5.0,
        "{what}: χ² {sum} for {n} degrees of freedom"
    );
    assert!(scores.iter().all(|z| z.abs() < 6.0), "{what}: {scores:?}");
}

/// Four moments of values that are to be N(0,1), each within five standard deviations.
pub(crate) fn assert_normal(what: &str, values: &[f64]) {
    let n = values.len() as f64;
    let moment = |power: i32| values.iter().map(|value| value.powi(power)).sum::<f64>() / n;
    // Means 0, 1, 0, 3 with variances 1, 2, 15, 96.
    for (power, mean, variance) in [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)] {
        let found = moment(power);
        let bound = 5.0 * f64::sqrt(variance / n);
        assert!((found - mean).abs() < bound, "{what}, moment {power}: {found}");
    }
}

/// How far a count that is Binomial(trials, p) is from its mean, in standard deviations.
pub(crate) fn score(count: usize, trials: usize, p: f64) -> f64 {
    let n = trials as f64;
    (count as f64 - n * p) / (n * p * (1.0 - p)).sqrt()
}

/// How far two things that happen with probability `p` each are from independent, in standard deviations. Scores of pairs
/// that share a thing are uncorrelated, which counts of both happening are not.
pub(crate) fn joint_score(together: impl Iterator<Item = (bool, bool)>, p: f64) -> f64 {
    let centred = |happened: bool| f64::from(u8::from(happened)) - p;
    let (trials, sum) = together.fold((0.0, 0.0), |(trials, sum), (one, other)| {
        (trials + 1.0, sum + centred(one) * centred(other))
    });
    sum / (p * (1.0 - p) * f64::sqrt(trials))
}

pub(crate) fn assert_unrelated(what: &str, left: &[f64], right: &[f64]) {
    let found = correlation(left, right);
    assert!(found.abs() < 5.0 / (left.len() as f64).sqrt(), "{what}: {found}");
}

/// Of two samples with mean 0.
pub(crate) fn correlation(left: &[f64], right: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    dot(left, right) / (dot(left, left) * dot(right, right)).sqrt()
}

/// Expected: `scipy.stats.binomtest(k, n).proportion_ci(1 − 2·failure, "exact")` of SciPy 1.17.
#[test]
fn clopper_and_pearson_bounds_are_scipys() {
    let binomials = Binomials::new(20_000);
    for (successes, trials, lower, upper) in CLOPPER_PEARSON {
        let found = binomials.lower(successes, trials, 0.025);
        assert!((found - lower).abs() < 1e-9, "{found} for {lower}");
        let found = binomials.upper(successes, trials, 0.025);
        assert!((found - upper).abs() < 1e-9, "{found} for {upper}");
    }
}

const CLOPPER_PEARSON: [(usize, usize, f64, f64); 4] = [
    (0, 10, 0.0, 0.308_497_107_818_762_94),
    (3, 10, 0.066_739_511_177_734_47, 0.652_452_850_060_008),
    (10, 10, 0.691_502_892_181_237_1, 1.0),
    (1234, 20_000, 0.058_404_277_601_548_21, 0.065_123_827_615_676_03),
];

/// Expected: `p_value_DP_audit` and `get_eps_audit` of the paper's appendix D, run with SciPy.
#[test]
fn bounds_of_one_run_are_those_of_the_papers_program() {
    let binomials = Binomials::new(1000);
    for (canaries, guesses, correct, delta, epsilon) in PAPER {
        let run = OneRun {
            canaries,
            guesses,
            correct,
        };
        let found = binomials.one_run_epsilon(&run, delta, 0.05);
        assert!((found - epsilon).abs() < 1e-6, "{found} for {epsilon}");
    }
}

/// Canaries, guesses, right ones, δ, ε.
const PAPER: [(usize, usize, usize, f64, f64); 4] = [
    (100, 100, 100, 0.0, 3.492_965_431_152_292_4),
    (1000, 100, 98, 1e-5, 2.710_962_922_007_024),
    (1000, 1000, 600, 1e-5, 0.297_226_953_718_774_4),
    (500, 40, 20, 1e-5, 0.0),
];

/// Randomised response is as distinguishable as its ε permits: of it the bound is exceeded as often as 95% confidence
/// permits, and not much less often. An auditor who is never wrong could be one who never says anything.
#[test]
fn the_bound_of_one_run_fails_as_often_as_it_may_on_randomised_response() {
    let binomials = Binomials::new(500);
    for (epsilon, guesses) in [(0.5, 500), (1.0, 100), (2.0, 500), (4.0, 200)] {
        let bound = |correct| {
            let run = OneRun {
                canaries: guesses,
                guesses,
                correct,
            };
            binomials.one_run_epsilon(&run, 0.0, 0.05)
        };
        let first = (0..=guesses).find(|&correct| bound(correct) > epsilon).unwrap();
        let right = 1.0 / (1.0 + f64::exp(-epsilon));
        let false_alarms = binomials.at_least(guesses, first, right);
        assert!(
            (0.01..=0.05).contains(&false_alarms),
            "ε = {epsilon}: {false_alarms}"
        );
    }
}
