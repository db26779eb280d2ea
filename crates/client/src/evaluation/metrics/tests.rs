//! Against formulas written out by hand, against the exact area, and against simulation of the engine's own noise.

use super::*;
use crate::evaluation::NoisyHistograms;
use bastionai_privacy::histogram::Histograms;
use bastionai_privacy::noise::NoiseStream;

/// Scores of records with known classes; deterministic, from a linear congruence.
fn records(classes: usize, count: usize) -> Vec<(i64, Vec<f64>)> {
    let mut state = 12_345_u64;
    let mut uniform = move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    (0..count)
        .map(|row| {
            let label = row % classes;
            let score = |class: usize| 3.0 * uniform() + f64::from(u8::from(class == label));
            (label as i64, (0..classes).map(score).collect())
        })
        .collect()
}

fn counted(histograms: &Histograms, records: &[(i64, Vec<f64>)]) -> Vec<Vec<i64>> {
    let mut counts = histograms.zeros();
    for (label, scores) in records {
        histograms.add(*label, scores, true, &mut counts);
    }
    counts
}

fn released(histograms: &Histograms, counts: Vec<Vec<i64>>, noise: f64) -> NoisyHistograms {
    let shapes = histograms.shapes().into_iter().zip(counts);
    let each = shapes.map(|(shape, counts)| ReleasedHistogram {
        name: shape.name,
        rows: shape.rows,
        columns: shape.columns,
        counts,
    });
    NoisyHistograms::new(histograms.classes(), noise, each.collect()).unwrap()
}

/// Area by comparing every pair.
fn exact_auroc(records: &[(i64, Vec<f64>)]) -> f64 {
    let of = |class: i64| {
        records
            .iter()
            .filter(move |(label, _)| *label == class)
            .map(|(_, s)| s[1] - s[0])
    };
    let pairs = of(1).flat_map(|positive| of(0).map(move |negative| (positive, negative)));
    let (won, total) = pairs.fold((0.0, 0.0), |(won, total), (positive, negative)| {
        (won + f64::from(u8::from(positive > negative)), total + 1.0)
    });
    won / total
}

#[test]
fn without_noise_accuracy_and_f1_are_those_of_the_confusion() {
    // Labels 0, 1, 2; the last column had no finite scores.
    let histogram = ReleasedHistogram {
        name: "confusion".into(),
        rows: 3,
        columns: 4,
        counts: vec![8, 1, 1, 0, 2, 6, 0, 2, 0, 5, 5, 0],
    };
    let release = NoisyHistograms::new(3, 0.0, vec![histogram]).unwrap();
    let accuracy = release.estimate(Metric::Accuracy).unwrap();
    assert_eq!(accuracy.value, Some(19.0 / 30.0));
    assert_eq!(
        (accuracy.std_error, accuracy.interval),
        (Some(0.0), (19.0 / 30.0, 19.0 / 30.0))
    );
    let binomial = (19.0 / 30.0 * (11.0 / 30.0) / 30.0_f64).sqrt();
    assert!((accuracy.sampling_error.unwrap() - binomial).abs() < 1e-12);
    let f1 = (16.0 / 20.0 + 12.0 / 22.0 + 10.0 / 16.0) / 3.0;
    assert!((release.estimate(Metric::F1Macro).unwrap().value.unwrap() - f1).abs() < 1e-12);
    assert_eq!(release.estimate(Metric::F1), release.estimate(Metric::F1Macro));
    assert_eq!(release.estimate(Metric::Auroc), None, "no scores were released");
    assert_eq!(release.records().value, Some(30.0));
}

#[test]
fn the_area_lies_within_its_discretisation_and_gets_closer_with_more_bins() {
    let records = records(2, 600);
    let exact = exact_auroc(&records);
    let mut last = f64::INFINITY;
    for bins in [2, 4, 8, 32, 128, 1024] {
        let histograms = Histograms::new(2, false, Some(bins)).unwrap();
        let release = released(&histograms, counted(&histograms, &records), 0.0);
        let estimate = release.estimate(Metric::Auroc).unwrap();
        let off = (estimate.value.unwrap() - exact).abs();
        assert!(
            off <= estimate.discretisation,
            "{bins}: {off} > {}",
            estimate.discretisation
        );
        assert!(estimate.interval.0 <= exact && exact <= estimate.interval.1);
        assert!(estimate.discretisation < last, "{bins} bins");
        last = estimate.discretisation;
    }
    assert!(last < 0.005);
}

/// Every derivative against a difference quotient.
#[test]
fn derivatives_are_right_and_homogeneous() {
    let counts: Vec<f64> = (0..12).map(|cell| f64::from(3 + (cell * 7) % 11)).collect();
    type Function = fn(&[f64]) -> Smooth;
    let functions: [(&str, usize, Function); 4] = [
        ("accuracy", 12, |counts| accuracy(counts, 3, 0.0)),
        ("f1", 12, |counts| f1(counts, 3, 2, 0.0)),
        ("f1_macro", 12, |counts| f1_macro(counts, 3, 0.0)),
        ("auroc", 12, |counts| auroc(counts, 0.0)),
    ];
    for (name, cells, function) in functions {
        let smooth = function(&counts);
        for cell in 0..cells {
            let moved = |by: f64| {
                let mut counts = counts.clone();
                counts[cell] += by;
                function(&counts).value
            };
            let quotient = (moved(1e-4) - moved(-1e-4)) / 2e-4;
            assert!(
                (smooth.derivative[cell] - quotient).abs() < 1e-7,
                "{name}, count {cell}"
            );
        }
        let homogeneity: f64 = smooth
            .derivative
            .iter()
            .zip(&counts)
            .map(|(by, count)| by * count)
            .sum();
        assert!(homogeneity.abs() < 1e-9, "{name}: {homogeneity}");
    }
}

/// The claim of every error bar: over fresh noise the 95% interval holds the metric of exactly these records about
/// 95 times in 100, and the estimates scatter by the standard error.
#[test]
fn error_bars_cover_the_exact_metric() {
    for (classes, count, bins, noise) in [(2, 1000, 16, 6.0), (2, 4000, 32, 12.0), (4, 4000, 8, 10.0)] {
        let records = records(classes, count);
        let histograms = Histograms::new(classes as u32, true, Some(bins)).unwrap();
        let exact_counts = counted(&histograms, &records);
        let exact = released(&histograms, exact_counts.clone(), 0.0);
        for metric in [Metric::Accuracy, Metric::F1, Metric::F1Macro, Metric::Auroc] {
            let truth = exact.estimate(metric).unwrap().value.unwrap();
            let (mut covered, mut squares, mut variances) = (0, 0.0, 0.0);
            for round in 0..ROUNDS {
                let mut key = [7; 32];
                key[..8].copy_from_slice(&u64::from(round).to_le_bytes());
                let stream = NoiseStream::new(key);
                let mut counts = exact_counts.clone();
                for (tensor, counts) in counts.iter_mut().enumerate() {
                    stream
                        .add_rounded_gaussian(1, tensor as u32, 0, counts, noise)
                        .unwrap();
                }
                let estimate = released(&histograms, counts, noise).estimate(metric).unwrap();
                let (value, error) = (estimate.value.unwrap(), estimate.std_error.unwrap());
                // The exact metric of the same bins, so that the discretisation does not help.
                covered += u32::from((value - truth).abs() <= QUANTILE * error);
                squares += (value - truth).powi(2);
                variances += error * error;
            }
            let share = f64::from(covered) / f64::from(ROUNDS);
            assert!(
                (0.925..=0.975).contains(&share),
                "{metric}, {classes} classes: covered {share}"
            );
            let ratio = (squares / variances).sqrt();
            assert!(
                (0.9..=1.1).contains(&ratio),
                "{metric}, {classes} classes: scatter {ratio} of the stated"
            );
        }
    }
}

#[test]
fn a_metric_drowned_in_noise_has_no_value() {
    let records = records(2, 30);
    let histograms = Histograms::new(2, true, Some(16)).unwrap();
    let release = released(&histograms, counted(&histograms, &records), 50.0);
    for metric in [Metric::Accuracy, Metric::F1, Metric::Auroc] {
        let estimate = release.estimate(metric).unwrap();
        assert_eq!(
            (estimate.value, estimate.interval),
            (None, (0.0, 1.0)),
            "{metric}"
        );
        assert_eq!(estimate.to_string(), "drowned in noise");
    }
    // No positives at all: nothing to rank, however little the noise.
    let negatives: Vec<_> = records.into_iter().filter(|(label, _)| *label == 0).collect();
    let release = released(&histograms, counted(&histograms, &negatives), 0.0);
    assert_eq!(release.estimate(Metric::Auroc).unwrap().value, None);
    assert!(release.estimate(Metric::Accuracy).unwrap().value.is_some());
}

#[test]
fn names_are_read_and_unknown_ones_refused() {
    for metric in Metric::ALL {
        assert_eq!(metric.to_string().parse(), Ok(metric));
    }
    let error = "precision".parse::<Metric>().unwrap_err();
    assert!(error.to_string().contains("choose from accuracy"), "{error}");
}

#[test]
fn histograms_that_do_not_fit_are_refused() {
    let histogram = |name: &str, rows, columns, counts| ReleasedHistogram {
        name: name.into(),
        rows,
        columns,
        counts: vec![0; counts],
    };
    let fits = |classes, each| NoisyHistograms::new(classes, 1.0, each);
    fits(2, vec![histogram("confusion", 2, 3, 6)]).unwrap();
    assert!(fits(3, vec![histogram("confusion", 2, 3, 6)]).is_err());
    assert!(fits(2, vec![histogram("confusion", 2, 3, 5)]).is_err());
    assert!(fits(2, vec![histogram("scores/0", 2, 9, 18)]).is_err());
    assert!(fits(2, vec![]).is_err());
    let confusion = || vec![histogram("confusion", 2, 3, 6)];
    assert!(NoisyHistograms::new(2, f64::NAN, confusion()).is_err());
    assert!(NoisyHistograms::new(2, -1.0, confusion()).is_err());
}

const ROUNDS: u32 = 1000;
