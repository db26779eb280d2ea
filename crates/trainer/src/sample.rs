//! Which records a step uses, and where in its batches they stand.
//!
//! Every slot of every dataset is drawn independently, with correlated noise of one class of them; the sample is cut to the cap; each record then gets a place,
//! uniformly at random without repetition, among all places of all micro-batches. The rest is padding.
//!
//! # Why random places
//! Rule T2 fixes the batch size because kernels round differently at different sizes. They also round differently
//! from row to row (measured: MKL, `[16, 6]·[6, 5]`), so if records were packed in order, removing one would shift
//! the others, and a graph made to amplify rounding would turn that into a leak. With random places it does not
//! matter: a uniformly random placement of `S ∪ {j}`, restricted to `S`, is a uniformly random placement of `S`.
//! So the runs with and without `j` can be coupled to agree on every other record's place, with padding at `j`'s;
//! for each such pair the sums differ by `j`'s term alone (at a fixed place, rows do not influence one another),
//! and a mixture over places keeps the bound, since hockey-stick divergences are jointly convex. Places come from
//! a pseudo-random function, as the sample itself does ([`RandomOrder`]).
//!
//! # Why random classes
//! With a band of noise each record has its turn in one step of `b` only: it is of one of `b` classes. Were the class a
//! matter of its slot's number, a record removed would move all after it into other classes. So the slots are put into
//! a uniformly random order of a key of the run's, and class `c` are those at places `c, c + b, …` of it: a uniformly random
//! placement of the records, of which the same holds as of places in a batch. No class has more than `⌈n/b⌉` slots,
//! and as the key is the same at every start of the run's trainer, no record has more than `⌈T/b⌉` turns.

use crate::error::{EngineError, Result};
use bastionai_privacy::order::RandomOrder;
use bastionai_privacy::sampling::PoissonSampler;
use bastionai_wire::trainer::DatasetShape;

/// Draws the sample of every step over all datasets of a run.
pub struct PooledSampler {
    sampler: PoissonSampler,
    order: RandomOrder,
    datasets: Vec<DatasetShape>,
    cap: usize,
    classes: Option<Classes>,
}

/// In which of the classes that have their turn one after the other each slot is, counted through all datasets.
struct Classes {
    count: u64,
    of_slot: Vec<u32>,
}

impl PooledSampler {
    /// `cap`: records that fit into a step, `physical_batch_size × micro_batches`.
    pub fn new(
        key: [u8; 32],
        order_key: &[u8; 32],
        threshold: u64,
        datasets: Vec<DatasetShape>,
        cap: usize,
    ) -> Self {
        Self {
            sampler: PoissonSampler::new(key, threshold),
            order: RandomOrder::new(*order_key),
            datasets,
            cap,
            classes: None,
        }
    }

    /// The same with `count` classes, of which class `step mod count` has its turn: the threshold is the probability at a
    /// turn. `key`: of the run, not of this start.
    ///
    /// # Errors
    /// [`EngineError::Job`] without a class, with more classes than slots, or more slots than can be ordered.
    pub fn in_classes(mut self, count: u64, key: [u8; 32]) -> Result<Self> {
        let slots: u64 = self.datasets.iter().map(|shape| shape.capacity).sum();
        let fits = |count: &u32| (1..=slots).contains(&u64::from(*count));
        let Some(classes) = u32::try_from(count).ok().filter(fits) else {
            return Err(EngineError::Job(
                "there are fewer records than bands of noise".into(),
            ));
        };
        let order = usize::try_from(slots).ok();
        let order = order.and_then(|slots| RandomOrder::new(key).of(0, Purpose::Class as u32, slots));
        let mut of_slot = vec![0; slots as usize];
        for (place, slot) in (0..classes).cycle().zip(order.ok_or_else(too_many)?) {
            of_slot[slot] = place;
        }
        self.classes = Some(Classes { count, of_slot });
        Ok(self)
    }

    /// Whether a slot's class has its turn.
    fn has_turn(&self, step: u64, slot: u64) -> bool {
        match &self.classes {
            None => true,
            Some(classes) => u64::from(classes.of_slot[slot as usize]) == step % classes.count,
        }
    }

    /// What stands at each of the `cap` places of step `step`: a row, counted through all datasets' capacities, or
    /// padding. Places are in micro-batch order.
    ///
    /// # Errors
    /// [`EngineError::Job`] when a dataset is larger than a sampling stream.
    pub fn places(&self, step: u64) -> Result<Vec<Option<u64>>> {
        let rows = self.draw(step)?;
        let mut places = vec![None; self.cap];
        let order = self.order.of(step, Purpose::Place as u32, self.cap);
        for (place, row) in order.ok_or_else(too_many)?.into_iter().zip(rows) {
            places[place] = Some(row);
        }
        Ok(places)
    }

    /// Rows of step `step`, in order.
    ///
    /// Every slot is drawn, padding too, and padding then dropped: the work does not show how many records
    /// there are (rules D8, D10). A sample above the cap is cut to the `cap` rows that come first in a random order
    /// of this start's secret key, so each is equally likely to be dropped, whatever it holds, and a row that comes or
    /// goes leaves the order of the others; the probability that this happens is part of the price. Samples that fit are
    /// ranked as well: a step that takes longer where one was cut would tell whether the last record was drawn.
    ///
    /// # Errors
    /// [`EngineError::Job`] when a dataset is larger than a sampling stream.
    fn draw(&self, step: u64) -> Result<Vec<u64>> {
        let mut pooled = Vec::new();
        let mut drawn = Vec::new();
        let mut offset = 0;
        for (dataset, shape) in self.datasets.iter().enumerate() {
            self.sampler
                .sample(step, dataset as u32, shape.capacity, &mut drawn)
                .map_err(|error| EngineError::Job(error.to_string()))?;
            pooled.extend(
                drawn
                    .iter()
                    .filter(|&&row| row < shape.rows)
                    .map(|row| row + offset)
                    .filter(|&slot| self.has_turn(step, slot)),
            );
            offset += shape.capacity;
        }
        let ranks = pooled
            .iter()
            .map(|&row| self.order.rank(step, Purpose::Cut as u32, row))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(too_many)?;
        let mut ranked: Vec<(u128, u64)> = ranks.into_iter().zip(pooled).collect();
        ranked.sort_unstable();
        ranked.truncate(self.cap);
        Ok(ranked.into_iter().map(|(_, row)| row).collect())
    }
}

fn too_many() -> EngineError {
    EngineError::Job("a step has more records than can be put in random order".into())
}

/// Keeps the two uses of the order key apart.
#[derive(Clone, Copy)]
enum Purpose {
    Cut = 0,
    Place = 1,
    /// Under the key of the run, which orders nothing else.
    Class = 2,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(threshold: u64, cap: usize) -> PooledSampler {
        let datasets = vec![
            DatasetShape {
                capacity: 64,
                rows: 40,
            },
            DatasetShape {
                capacity: 32,
                rows: 32,
            },
        ];
        PooledSampler::new([3; 32], &[4; 32], threshold, datasets, cap)
    }

    #[test]
    fn padding_is_never_drawn_and_every_record_can_be() {
        let mut rows = sampler(u64::MAX, 1000).draw(1).unwrap();
        rows.sort_unstable();
        let expected: Vec<u64> = (0..40).chain(64..96).collect();
        assert_eq!(rows, expected);
    }

    #[test]
    fn an_empty_sample_is_a_sample() {
        assert!(sampler(0, 10).draw(7).unwrap().is_empty());
    }

    #[test]
    fn a_sample_above_the_cap_is_cut_evenly() {
        let sampler = sampler(u64::MAX, 18);
        let mut kept = vec![0u32; 96];
        for step in 0..4000 {
            let rows = sampler.draw(step).unwrap();
            assert_eq!(rows.len(), 18);
            rows.iter().for_each(|&row| kept[row as usize] += 1);
        }
        // Each of 72 records is kept with probability 1/4: 1000 ± 27 (one standard deviation).
        let extremes = (0..40).chain(64..96).map(|row: usize| kept[row]);
        assert!(
            extremes.clone().min() > Some(860) && extremes.max() < Some(1140),
            "{kept:?}"
        );
    }

    /// What `privacy::truncation` prices: with a record more, one other at most gives way to it.
    #[test]
    fn a_record_that_comes_displaces_one_other_at_most() {
        let with = sampler(1 << 62, 18);
        let mut without = sampler(1 << 62, 18);
        without.datasets[0].rows -= 1;
        let (mut came, mut displaced) = (0, 0);
        for step in 0..2000 {
            let (with, without) = (with.draw(step).unwrap(), without.draw(step).unwrap());
            let new: Vec<&u64> = with.iter().filter(|row| !without.contains(row)).collect();
            let lost = without.iter().filter(|row| !with.contains(row)).count();
            assert!(new.is_empty() || new == [&39], "{new:?}");
            assert!(lost <= new.len(), "{lost} gave way to {new:?}");
            assert!(
                lost == 0 || without.len() == 18,
                "a sample of {} had room",
                without.len()
            );
            came += new.len();
            displaced += lost;
        }
        assert!(displaced > 50 && came > displaced + 50, "{displaced} of {came}");
    }

    #[test]
    fn every_record_is_at_one_place_and_every_place_is_equally_likely() {
        let sampler = sampler(u64::MAX, 80);
        let mut first = vec![0u32; 80];
        for step in 0..4000 {
            let places = sampler.places(step).unwrap();
            let mut rows: Vec<u64> = places.iter().flatten().copied().collect();
            let place = places.iter().position(|&row| row == Some(0)).unwrap();
            first[place] += 1;
            rows.sort_unstable();
            let mut drawn = sampler.draw(step).unwrap();
            drawn.sort_unstable();
            assert_eq!(rows, drawn);
        }
        // Row 0 is at each of 80 places 50 times, ± 7 (one standard deviation).
        assert!(first.iter().all(|&count| (15..90).contains(&count)), "{first:?}");
    }

    /// Each record in every third step at most, always the same ones; a new start of the trainer changes nothing of that.
    #[test]
    fn a_record_has_its_turn_once_in_so_many_steps_at_every_start() {
        let classes = 3;
        let mut turn = [None; 96];
        for (start, steps) in [([3; 32], 0..50), ([5; 32], 50..101)] {
            let mut sampler = sampler(u64::MAX / 2, 1000);
            sampler.sampler = PoissonSampler::new(start, u64::MAX / 2);
            let sampler = sampler.in_classes(classes, [9; 32]).unwrap();
            for step in steps {
                for row in sampler.draw(step).unwrap() {
                    let turn = turn[row as usize].get_or_insert(step % classes);
                    assert_eq!(*turn, step % classes, "row {row} at step {step}");
                }
            }
        }
        let records = (0..40).chain(64..96).map(|row: usize| turn[row].unwrap());
        let mut sizes = [0; 3];
        records.for_each(|class| sizes[class as usize] += 1);
        assert_eq!(sizes.iter().sum::<i32>(), 72);
        assert!(
            sizes.iter().all(|&size| size <= 32),
            "classes are of 32 slots: {sizes:?}"
        );
    }

    /// Marginals within turns, and that what is drawn at one turn says nothing of another.
    #[test]
    fn at_its_turn_a_record_is_drawn_with_the_threshold_and_independently() {
        let (classes, steps) = (4, 8000);
        let sampler = sampler(1 << 62, 1000).in_classes(classes, [9; 32]).unwrap();
        let (mut drawn, mut twice, mut before) = ([0_u32; 96], [0_u32; 96], [false; 96]);
        for step in 0..steps {
            let rows = sampler.draw(step).unwrap();
            for slot in 0..96 {
                if !sampler.has_turn(step, slot) {
                    assert!(!rows.contains(&slot));
                    continue;
                }
                let (slot, now) = (slot as usize, rows.contains(&slot));
                drawn[slot] += u32::from(now);
                twice[slot] += u32::from(now && before[slot]);
                before[slot] = now;
            }
        }
        for row in (0..40).chain(64..96) {
            // 2000 turns: 500 ± 19 draws, 125 ± 11 (one standard deviation) right after another.
            assert!((400..600).contains(&drawn[row]), "{row}: {}", drawn[row]);
            assert!((65..185).contains(&twice[row]), "{row}: {}", twice[row]);
        }
        assert_eq!(drawn[40..64], [0; 24], "padding");
    }

    /// Over the key, each record is as likely in one class as in another, and with one record less the others are too.
    #[test]
    fn classes_are_a_uniformly_random_placement() {
        for fewer in [0, 1] {
            let mut counts = vec![[0_u32; 3]; 96];
            for key in 0..=255 {
                let mut sampler = sampler(u64::MAX, 1000);
                sampler.datasets[0].rows -= fewer;
                let sampler = sampler.in_classes(3, [key; 32]).unwrap();
                for step in 0..3 {
                    sampler
                        .draw(step)
                        .unwrap()
                        .iter()
                        .for_each(|&row| counts[row as usize][step as usize] += 1);
                }
            }
            for row in (0..40 - fewer as usize).chain(64..96) {
                // 256/3 ± 7.5 (one standard deviation).
                assert!(
                    counts[row].iter().all(|count| (50..120).contains(count)),
                    "{row}: {:?}",
                    counts[row]
                );
            }
        }
        assert!(
            sampler(1, 1).in_classes(97, [0; 32]).is_err() && sampler(1, 1).in_classes(0, [0; 32]).is_err()
        );
    }

    #[test]
    fn samples_of_steps_and_datasets_differ() {
        let sampler = sampler(1 << 63, 1000);
        assert_ne!(sampler.draw(1).unwrap(), sampler.draw(2).unwrap());
        let rows = sampler.draw(1).unwrap();
        let first: Vec<u64> = rows.iter().copied().filter(|&row| row < 32).collect();
        let second: Vec<u64> = rows
            .iter()
            .filter(|&&row| row >= 64)
            .map(|row| row - 64)
            .collect();
        assert_ne!(first, second);
    }
}
