//! Which counts one record makes in the histograms of an evaluation, and how much it can move them.
//!
//! A *confusion* histogram counts label × predicted class. A *scores* histogram of a class counts (label is the
//! class or not) × bin of the class's log-odds. Everything but the counts is public: number of classes, bins,
//! edges. Each histogram has one more column for records whose scores are not all finite.
//!
//! # Sensitivity
//! A record with a label in `0..classes` adds exactly 1 to exactly one cell of each of the `m` histograms;
//! any other record adds nothing. Which cell is a function of that record's label and scores alone
//! ([`Histograms::add`] reads nothing else). So adding or removing one record moves the vector of all counts by
//! a vector with at most `m` ones and zeros elsewhere: its L2 norm is at most √m ([`Histograms::l2_sensitivity`]),
//! and is √m for every record with a label in range.

use std::f64::consts::PI;
use thiserror::Error;

/// Most classes.
pub const MAX_CLASSES: u32 = 1024;
/// Most score bins.
pub const MAX_SCORE_BINS: u32 = 1024;
/// Most counts over all histograms of an evaluation.
pub const MAX_COUNTS: u64 = 1 << 21;

/// Half of all bins lie within these log-odds: a probability from 0.12 to 0.88.
const SCALE: f64 = 2.0;

/// Why there are no such histograms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum HistogramError {
    /// Too few or too many classes.
    #[error("{classes} classes: an evaluation has 2 to {MAX_CLASSES}")]
    Classes {
        /// Asked for.
        classes: u32,
    },
    /// Too few or too many bins, or an odd number.
    #[error("{bins} score bins: choose an even number from 2 to {MAX_SCORE_BINS}")]
    ScoreBins {
        /// Asked for.
        bins: u32,
    },
    /// Nothing to count.
    #[error("neither a confusion nor a scores histogram is asked for")]
    Nothing,
    /// More counts than one release may have.
    #[error("the histograms have {counts} counts, more than {MAX_COUNTS}: ask for fewer score bins")]
    TooManyCounts {
        /// Counts in all.
        counts: u64,
    },
}

/// The histograms of one evaluation.
#[derive(Clone, Debug, PartialEq)]
pub struct Histograms {
    classes: u32,
    has_confusion: bool,
    /// Inner edges of the score bins, ascending; none without score histograms.
    edges: Option<Vec<f64>>,
}

/// One histogram: its name and extents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistogramShape {
    /// `confusion`, or `scores/CLASS`.
    pub name: String,
    /// Labels: the classes, or [another class, this class].
    pub rows: u64,
    /// Predicted classes or score bins, and last the records without finite scores.
    pub columns: u64,
}

impl HistogramShape {
    /// Number of counts.
    pub fn counts(&self) -> u64 {
        self.rows * self.columns
    }
}

impl Histograms {
    /// A confusion histogram, score histograms with `score_bins` bins, or both. Two classes have one score
    /// histogram, that of class 1; more have one each (one versus the rest).
    ///
    /// # Errors
    /// [`HistogramError`] says which number is out of range.
    pub fn new(classes: u32, has_confusion: bool, score_bins: Option<u32>) -> Result<Self, HistogramError> {
        if !(2..=MAX_CLASSES).contains(&classes) {
            return Err(HistogramError::Classes { classes });
        }
        if let Some(bins) = score_bins
            && !(bins.is_multiple_of(2) && (2..=MAX_SCORE_BINS).contains(&bins))
        {
            return Err(HistogramError::ScoreBins { bins });
        }
        let histograms = Self {
            classes,
            has_confusion,
            edges: score_bins.map(score_edges),
        };
        let counts: u64 = histograms.shapes().iter().map(HistogramShape::counts).sum();
        match counts {
            0 => Err(HistogramError::Nothing),
            counts if counts > MAX_COUNTS => Err(HistogramError::TooManyCounts { counts }),
            _ => Ok(histograms),
        }
    }

    /// Number of classes.
    pub fn classes(&self) -> u32 {
        self.classes
    }

    /// The histograms, in the order of their release: confusion, then scores by class.
    pub fn shapes(&self) -> Vec<HistogramShape> {
        let classes = u64::from(self.classes);
        let confusion = self.has_confusion.then(|| HistogramShape {
            name: "confusion".into(),
            rows: classes,
            columns: classes + 1,
        });
        let columns = self.edges.as_ref().map(|edges| edges.len() as u64 + 2);
        let scores = columns.into_iter().flat_map(|columns| {
            self.scored_classes().map(move |class| HistogramShape {
                name: format!("scores/{class}"),
                rows: 2,
                columns,
            })
        });
        confusion.into_iter().chain(scores).collect()
    }

    fn scored_classes(&self) -> std::ops::Range<u32> {
        if self.classes == 2 { 1..2 } else { 0..self.classes }
    }

    /// Zero counts, one vector for each histogram.
    pub fn zeros(&self) -> Vec<Vec<i64>> {
        let shapes = self.shapes();
        shapes
            .iter()
            .map(|shape| vec![0; shape.counts() as usize])
            .collect()
    }

    /// How far one record can move all counts together, in L2: √m for m histograms, rounded up.
    pub fn l2_sensitivity(&self) -> f64 {
        match self.shapes().len() {
            1 => 1.0,
            m => (m as f64).sqrt() * (1.0 + 2.0 * f64::EPSILON),
        }
    }

    /// Counts one record. `scores`: one log-odds of class 1 against class 0, or one logit for each class.
    /// `has_scores` is false for a record whose scores mean nothing.
    ///
    /// # Panics
    /// When `scores` is of another length, or `counts` not from [`Self::zeros`]: the caller has checked both.
    pub fn add(&self, label: i64, scores: &[f64], has_scores: bool, counts: &mut [Vec<i64>]) {
        assert!(
            scores.len() == self.classes as usize || (scores.len() == 1 && self.classes == 2),
            "as many scores as classes"
        );
        let Some(label) = u32::try_from(label).ok().filter(|&label| label < self.classes) else {
            return;
        };
        let finite = has_scores && scores.iter().all(|score| score.is_finite());
        let mut counts = counts.iter_mut();
        let mut count = |row: u32, columns: usize, column: usize| {
            let histogram = counts.next().expect("one vector for each histogram");
            histogram[row as usize * columns + column] += 1;
        };
        if self.has_confusion {
            let classes = self.classes as usize;
            let column = if finite { predicted(scores) } else { classes };
            count(label, classes + 1, column);
        }
        if let Some(edges) = &self.edges {
            for class in self.scored_classes() {
                let bins = edges.len() + 1;
                let column = if finite {
                    bin(edges, log_odds(scores, class as usize))
                } else {
                    bins
                };
                count(u32::from(label == class), bins + 1, column);
            }
        }
    }
}

/// Inner edges of `bins` bins of log-odds: equal steps of the angle arctan(log-odds / 2), so that bins are narrow
/// where models are unsure and yet reach any score. Bin `b` holds (edge b−1, edge b]; 0 is an edge, and a score
/// of 0 is below it, as a probability of ½ is not above ½.
pub fn score_edges(bins: u32) -> Vec<f64> {
    let at = |edge: u32| match 2 * edge {
        middle if middle == bins => 0.0,
        _ => SCALE * (PI * (f64::from(edge) / f64::from(bins) - 0.5)).tan(),
    };
    (1..bins).map(at).collect()
}

fn bin(edges: &[f64], log_odds: f64) -> usize {
    edges.partition_point(|&edge| edge < log_odds)
}

/// The class with the largest score, the first of equals; class 1 when its only log-odds are above 0.
fn predicted(scores: &[f64]) -> usize {
    match scores {
        [log_odds] => usize::from(*log_odds > 0.0),
        _ => (1..scores.len()).fold(
            0,
            |best, class| if scores[class] > scores[best] { class } else { best },
        ),
    }
}

/// Log-odds of a class against all others under the softmax of the scores.
fn log_odds(scores: &[f64], class: usize) -> f64 {
    if let [log_odds] = scores {
        return *log_odds;
    }
    let others = || {
        scores
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != class)
            .map(|(_, score)| *score)
    };
    let largest = others().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = others().map(|score| (score - largest).exp()).sum();
    scores[class] - largest - sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn count(histograms: &Histograms, records: &[(i64, Vec<f64>)]) -> Vec<Vec<i64>> {
        let mut counts = histograms.zeros();
        records
            .iter()
            .for_each(|(label, scores)| histograms.add(*label, scores, true, &mut counts));
        counts
    }

    fn any_score() -> impl Strategy<Value = f64> {
        prop_oneof![
            4 => -6.0..6.0f64,
            1 => prop::sample::select(vec![
                f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0, -0.0, 1e300, -1e300, f64::MAX, f64::MIN, 1e-310,
            ]),
        ]
    }

    fn records(classes: usize) -> impl Strategy<Value = Vec<(i64, Vec<f64>)>> {
        let label =
            prop_oneof![8 => 0..classes as i64, 1 => prop::sample::select(vec![-1, i64::MIN, i64::MAX, 99])];
        prop::collection::vec((label, prop::collection::vec(any_score(), classes)), 1..20)
    }

    proptest! {
        /// The claim of the module: neighbouring datasets, NaN and infinities among them, differ by at most √m.
        #[test]
        fn one_record_moves_the_counts_by_at_most_the_stated_sensitivity(
            (classes, records) in (2usize..6).prop_flat_map(|classes| (Just(classes), records(classes))),
            (confusion, bins) in prop_oneof![
                (Just(true), prop::option::of((1u32..20).prop_map(|half| 2 * half))),
                (Just(false), (1u32..20).prop_map(|half| Some(2 * half))),
            ],
            seed in any::<prop::sample::Index>(),
        ) {
            let histograms = Histograms::new(classes as u32, confusion, bins).unwrap();
            let whole = count(&histograms, &records);
            let removed = seed.index(records.len());
            let mut fewer = records.clone();
            let (label, _) = fewer.remove(removed);
            let without = count(&histograms, &fewer);
            let moved: i64 = whole.concat().iter().zip(without.concat()).map(|(a, b)| (a - b).pow(2)).sum();
            prop_assert!((moved as f64).sqrt() <= histograms.l2_sensitivity());
            let expected = if (0..classes as i64).contains(&label) { whole.len() as i64 } else { 0 };
            prop_assert_eq!(moved, expected);
        }
    }

    #[test]
    fn predictions_ties_and_records_without_scores_have_their_cells() {
        let histograms = Histograms::new(3, true, None).unwrap();
        let records = [
            (0, vec![1.0, 2.0, 0.0]),
            (0, vec![2.0, 2.0, 1.0]),
            (2, vec![f64::NAN, 0.0, 1.0]),
            (1, vec![f64::INFINITY, 0.0, 1.0]),
            (7, vec![0.0, 0.0, 1.0]),
        ];
        let counts = count(&histograms, &records);
        #[rustfmt::skip]
        assert_eq!(counts, [[1, 1, 0, 0,  0, 0, 0, 1,  0, 0, 0, 1]]);
        let mut counts = histograms.zeros();
        histograms.add(1, &[0.0, 1.0, 0.0], false, &mut counts);
        assert_eq!(counts[0][4 + 3], 1, "scores that mean nothing are no prediction");
    }

    #[test]
    fn one_logit_and_two_logits_of_the_same_odds_are_counted_alike() {
        let histograms = Histograms::new(2, true, Some(16)).unwrap();
        for z in [-40.0, -2.0, -0.3, 0.0, 1e-9, 0.7, 5.0, 1e6] {
            let one = count(&histograms, &[(1, vec![z])]);
            assert_eq!(one, count(&histograms, &[(1, vec![-z / 2.0, z / 2.0])]), "{z}");
            let predicted = usize::from(z > 0.0);
            let bin = one[1].iter().position(|&count| count == 1).unwrap() - 17;
            assert_eq!(predicted, usize::from(bin >= 8), "0 is an edge: {z} in bin {bin}");
        }
    }

    #[test]
    fn edges_rise_hold_zero_and_half_of_them_lie_within_two() {
        for bins in [2, 4, 32, 1024] {
            let edges = score_edges(bins);
            assert_eq!(edges.len() as u32, bins - 1);
            assert!(edges.windows(2).all(|pair| pair[0] < pair[1]));
            assert_eq!(edges[bins as usize / 2 - 1], 0.0);
        }
        let within = score_edges(64)
            .iter()
            .filter(|edge| edge.abs() <= 2.0 + 1e-9)
            .count();
        assert_eq!(within, 33);
    }

    #[test]
    fn log_odds_are_those_of_the_softmax() {
        let scores: [f64; 4] = [1.0, -2.0, 0.5, 3.0];
        let total: f64 = scores.iter().map(|score| score.exp()).sum();
        for class in 0..4 {
            let p = scores[class].exp() / total;
            assert!((log_odds(&scores, class) - (p / (1.0 - p)).ln()).abs() < 1e-12);
        }
        assert_eq!(log_odds(&[f64::MIN, f64::MAX], 1), f64::INFINITY, "not NaN");
    }

    #[test]
    fn shapes_and_sensitivity_are_those_of_the_histograms_asked_for() {
        let names = |classes, confusion, bins| {
            let histograms = Histograms::new(classes, confusion, bins).unwrap();
            let names: Vec<String> = histograms.shapes().into_iter().map(|shape| shape.name).collect();
            (names.join(" "), histograms.l2_sensitivity())
        };
        assert_eq!(names(2, true, None), ("confusion".into(), 1.0));
        assert_eq!(names(2, false, Some(32)), ("scores/1".into(), 1.0));
        let (both, sensitivity) = names(2, true, Some(32));
        assert_eq!(both, "confusion scores/1");
        assert!(sensitivity >= 2f64.sqrt() && sensitivity < 1.414_213_563);
        assert_eq!(names(3, true, Some(2)).0, "confusion scores/0 scores/1 scores/2");
        assert!(names(3, true, Some(2)).1 >= 2.0);
    }

    #[test]
    fn impossible_histograms_are_refused() {
        assert_eq!(Histograms::new(2, false, None), Err(HistogramError::Nothing));
        for classes in [0, 1, MAX_CLASSES + 1] {
            assert_eq!(
                Histograms::new(classes, true, None),
                Err(HistogramError::Classes { classes })
            );
        }
        for bins in [0, 3, MAX_SCORE_BINS + 2] {
            assert_eq!(
                Histograms::new(2, true, Some(bins)),
                Err(HistogramError::ScoreBins { bins })
            );
        }
        assert!(matches!(
            Histograms::new(MAX_CLASSES, true, Some(MAX_SCORE_BINS)),
            Err(HistogramError::TooManyCounts { .. })
        ));
    }
}
