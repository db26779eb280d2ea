//! Which units a step uses, which of their records, and where in its batches they stand.
//!
//! Every slot is drawn independently, with correlated noise of one class of them: of a dataset whose unit is the record one
//! for each row, else one for each declared unit of a group. The sample is cut to the cap; each unit then gets a place of k
//! rows, uniformly at random without repetition, among all places of all micro-batches. The rest is padding.
//!
//! A unit with more than k records has k of them there, drawn afresh at each step, one with fewer has padding behind them.
//! Which, and in which order, depends on the unit's own rows and the key alone.
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
//!
//! # Units of several records
//! Read "unit" for "record" and nothing changes: `S` is a set of units, a place is k rows that stand together and hold
//! one unit or padding, and `j`'s term is the clipped sum of what stands at its place. The slots that classes are made of
//! are those that are declared and drawn: none for the rows of a dataset whose rows are of units. Which slot is a unit's
//! is the server's to say, by a key of the run's as well, so that it is the same at every start.

use crate::error::{EngineError, Result};
use crate::units::UnitRows;
use bastionai_privacy::order::RandomOrder;
use bastionai_privacy::sampling::PoissonSampler;
use bastionai_wire::trainer::DatasetShape;

/// Draws the sample of every step over all datasets of a run.
pub struct PooledSampler {
    sampler: PoissonSampler,
    order: RandomOrder,
    datasets: Vec<DatasetShape>,
    units: UnitRows,
    cap: usize,
    classes: Option<Classes>,
}

/// In which of the classes that have their turn one after the other each slot is that can be drawn: counted through the
/// datasets whose units are records, then through the groups.
struct Classes {
    count: u64,
    of_slot: Vec<u32>,
}

/// A unit that was drawn: a row, or a slot of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Unit {
    Row(u64),
    Slot(usize, u64),
}

impl PooledSampler {
    /// Of records; `cap`: how many fit into a step, `physical_batch_size × micro_batches`.
    pub fn new(
        key: [u8; 32],
        order_key: &[u8; 32],
        threshold: u64,
        datasets: Vec<DatasetShape>,
        cap: usize,
    ) -> Self {
        let units = UnitRows::of_records(datasets.len());
        Self::of_units(key, order_key, threshold, datasets, units, cap)
    }

    /// Of units, whose rows are complete; `cap`: how many fit into a step.
    pub fn of_units(
        key: [u8; 32],
        order_key: &[u8; 32],
        threshold: u64,
        datasets: Vec<DatasetShape>,
        units: UnitRows,
        cap: usize,
    ) -> Self {
        Self {
            sampler: PoissonSampler::new(key, threshold),
            order: RandomOrder::new(*order_key),
            datasets,
            units,
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
        let slots = self.units.declared(&self.datasets);
        let fits = |count: &u32| (1..=slots).contains(&u64::from(*count));
        let Some(classes) = u32::try_from(count).ok().filter(fits) else {
            return Err(EngineError::Job(
                "there are fewer units than bands of noise".into(),
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

    /// What stands in each of the `cap × k` rows of step `step`: a record's row, counted through all datasets' capacities,
    /// or padding. Rows are in micro-batch order; those of a unit's place stand together, its records first.
    ///
    /// # Errors
    /// [`EngineError::Job`] when a dataset is larger than a sampling stream.
    pub fn places(&self, step: u64) -> Result<Vec<Option<u64>>> {
        let units = self.draw(step)?;
        let length = self.units.records_per_unit();
        let mut places = vec![None; self.cap * length];
        let order = self.order.of(step, Purpose::Place as u32, self.cap);
        for (place, unit) in order.ok_or_else(too_many)?.into_iter().zip(units) {
            let rows = self.records(step, unit)?;
            for (place, row) in places[place * length..][..length].iter_mut().zip(rows) {
                *place = Some(row);
            }
        }
        Ok(places)
    }

    /// A unit's records in the random order of this step.
    fn records(&self, step: u64, unit: Unit) -> Result<Vec<u64>> {
        let (group, slot) = match unit {
            Unit::Row(row) => return Ok(vec![row]),
            Unit::Slot(group, slot) => (group, slot),
        };
        let rank = |row| Ok((self.rank(step, Purpose::Record, row)?, row));
        let mut ranked = self
            .units
            .rows(group, slot)
            .map(rank)
            .collect::<Result<Vec<(u128, u64)>>>()?;
        ranked.sort_unstable();
        Ok(ranked.into_iter().map(|(_, row)| row).collect())
    }

    fn rank(&self, step: u64, purpose: Purpose, thing: u64) -> Result<u128> {
        self.order.rank(step, purpose as u32, thing).ok_or_else(too_many)
    }

    /// Units of step `step`, in order.
    ///
    /// Every slot is drawn, padding too, and padding then dropped: the work does not show how many records
    /// there are (rules D8, D10). A sample above the cap is cut to the `cap` units that come first in a random order
    /// of this start's secret key, so each is equally likely to be dropped, whatever it holds, and a unit that comes or
    /// goes leaves the order of the others; the probability that this happens is part of the price. Samples that fit are
    /// ranked as well: a step that takes longer where one was cut would tell whether the last record was drawn.
    ///
    /// # Errors
    /// [`EngineError::Job`] when a dataset is larger than a sampling stream.
    fn draw(&self, step: u64) -> Result<Vec<Unit>> {
        let mut pooled = Vec::new();
        let mut drawn = Vec::new();
        // Rows of all datasets, and slots that can be drawn, before those at hand.
        let (mut offset, mut before) = (0, 0);
        for (dataset, shape) in self.datasets.iter().enumerate() {
            if !self.units.are_numbered(dataset) {
                self.sample(step, dataset, shape.capacity, &mut drawn)?;
                let records = drawn.iter().filter(|&&row| row < shape.rows);
                let in_turn = records.filter(|&&row| self.has_turn(step, row + before));
                pooled.extend(in_turn.map(|row| (row + offset, Unit::Row(row + offset))));
                before += shape.capacity;
            }
            offset += shape.capacity;
        }
        for group in 0..self.units.groups() {
            let slots = self.units.slots(group);
            self.sample(step, self.datasets.len() + group, slots, &mut drawn)?;
            let is_unit = |slot: &&u64| self.units.rows(group, **slot).next().is_some();
            let units = drawn.iter().filter(is_unit);
            let in_turn = units.filter(|&&slot| self.has_turn(step, slot + before));
            pooled.extend(in_turn.map(|&slot| (slot + offset, Unit::Slot(group, slot))));
            offset += slots;
            before += slots;
        }
        let rank = |(thing, unit)| Ok((self.rank(step, Purpose::Cut, thing)?, unit));
        let mut ranked = pooled
            .into_iter()
            .map(rank)
            .collect::<Result<Vec<(u128, Unit)>>>()?;
        ranked.sort_unstable();
        ranked.truncate(self.cap);
        Ok(ranked.into_iter().map(|(_, unit)| unit).collect())
    }

    /// The slots of one stream that are drawn.
    fn sample(&self, step: u64, stream: usize, slots: u64, drawn: &mut Vec<u64>) -> Result<()> {
        let sampled = self.sampler.sample(step, stream as u32, slots, drawn);
        sampled.map_err(|error| EngineError::Job(error.to_string()))
    }
}

fn too_many() -> EngineError {
    EngineError::Job("a step has more records than can be put in random order".into())
}

/// Keeps the uses of the order key apart.
#[derive(Clone, Copy)]
enum Purpose {
    Cut = 0,
    Place = 1,
    /// Under the key of the run, which orders nothing else.
    Class = 2,
    /// Which of a unit's records a step uses.
    Record = 3,
}

#[cfg(test)]
mod tests {
    use super::*;
    use bastionai_wire::units::{NO_UNIT, Units};
    use std::collections::BTreeMap;

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

    /// Rows that a step of records draws.
    fn drawn(sampler: &PooledSampler, step: u64) -> Vec<u64> {
        let units = sampler.draw(step).unwrap().into_iter();
        units
            .map(|unit| match unit {
                Unit::Row(row) => row,
                Unit::Slot(..) => panic!("every record is a unit"),
            })
            .collect()
    }

    #[test]
    fn padding_is_never_drawn_and_every_record_can_be() {
        let mut rows = drawn(&sampler(u64::MAX, 1000), 1);
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
            let rows = drawn(&sampler, step);
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
            let (with, without) = (drawn(&with, step), drawn(&without, step));
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
            let mut expected = drawn(&sampler, step);
            expected.sort_unstable();
            assert_eq!(rows, expected);
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
                for row in drawn(&sampler, step) {
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
            let rows = self::drawn(&sampler, step);
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
                    drawn(&sampler, step)
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
        let rows = drawn(&sampler, 1);
        let first: Vec<u64> = rows.iter().copied().filter(|&row| row < 32).collect();
        let second: Vec<u64> = rows
            .iter()
            .filter(|&&row| row >= 64)
            .map(|row| row - 64)
            .collect();
        assert_ne!(first, second);
    }

    /// Units 0 to 9 of dataset 0, slot `unit` having `unit % 4` records (none for 0, 4 and 8), and dataset 1 of records.
    fn of_units(threshold: u64, records_per_unit: u32, cap: usize) -> PooledSampler {
        let datasets = vec![
            DatasetShape {
                capacity: 24,
                rows: 13,
            },
            DatasetShape {
                capacity: 16,
                rows: 5,
            },
        ];
        let units = Units {
            records_per_unit,
            of_datasets: vec![Some(0), None],
            groups: vec![16],
        };
        let slots = (0..10u32).flat_map(|unit| vec![unit; unit as usize % 4]);
        let mut numbers: Vec<u32> = slots.collect();
        numbers.resize(24, NO_UNIT);
        let numbers: Vec<u8> = numbers.iter().flat_map(|slot| slot.to_le_bytes()).collect();
        let mut units = UnitRows::new(&units, 2).unwrap();
        units.fill(0, &datasets[0], 0, &numbers).unwrap();
        units.complete();
        PooledSampler::of_units([3; 32], &[4; 32], threshold, datasets, units, cap)
    }

    /// The unit of a row: those of the first dataset by slot, records after them.
    fn unit_of(row: u64) -> u64 {
        let slots = (0..10u64).flat_map(|unit| vec![unit; unit as usize % 4]);
        slots.clone().nth(row as usize).unwrap_or(row)
    }

    #[test]
    fn the_records_of_a_unit_stand_together_at_one_place_and_the_rest_is_padding() {
        let sampler = of_units(1 << 63, 2, 8);
        for step in 0..500 {
            let places = sampler.places(step).unwrap();
            assert_eq!(places.len(), 16);
            let mut seen = Vec::new();
            for place in places.chunks(2) {
                let rows: Vec<u64> = place.iter().flatten().copied().collect();
                let Some(first) = rows.first() else { continue };
                assert!(place[0].is_some(), "records come first");
                let unit = unit_of(*first);
                assert!(rows.iter().all(|row| unit_of(*row) == unit), "{rows:?}");
                let own = if *first < 13 { (unit % 4).min(2) } else { 1 };
                assert_eq!(rows.len() as u64, own);
                assert!(rows.len() < 2 || rows[0] != rows[1]);
                seen.push(unit);
            }
            let units = seen.len();
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), units, "a unit stands at one place");
        }
    }

    #[test]
    fn a_units_records_are_equally_likely_and_every_unit_is_drawn_as_often_whatever_its_size() {
        let sampler = of_units(1 << 62, 2, 16);
        let (mut rows, mut units) = (vec![0u32; 40], vec![0u32; 40]);
        for step in 0..4000 {
            let places = sampler.places(step).unwrap();
            places.iter().flatten().for_each(|&row| rows[row as usize] += 1);
            for place in places.chunks(2) {
                if let Some(row) = place[0] {
                    units[unit_of(row) as usize] += 1;
                }
            }
        }
        // q = 1/4: 1000 ± 27 (one standard deviation) of each unit and record.
        for (unit, &count) in units.iter().enumerate().filter(|(_, count)| **count > 0) {
            assert!((850..1150).contains(&count), "unit {unit}: {count}");
        }
        assert_eq!(units.iter().filter(|&&count| count > 0).count(), 7 + 5);
        // Two of three records of units 3 and 7: 667 ± 24.
        for row in (0..13).filter(|row| unit_of(*row) % 4 == 3) {
            assert!(
                (550..790).contains(&rows[row as usize]),
                "row {row}: {}",
                rows[row as usize]
            );
        }
    }

    /// What `privacy::truncation` prices, of units: all of one's records come and go together.
    #[test]
    fn a_unit_that_comes_displaces_one_other_at_most_and_changes_no_others_records() {
        let with = of_units(1 << 62, 2, 3);
        let mut without = of_units(1 << 62, 2, 3);
        without.units.remove(0, 7);
        let by_unit = |sampler: &PooledSampler, step| -> BTreeMap<u64, Vec<u64>> {
            let places = sampler.places(step).unwrap();
            let units = places
                .chunks(2)
                .map(|place| place.iter().flatten().copied().collect::<Vec<u64>>());
            units
                .filter_map(|rows| Some((unit_of(*rows.first()?), rows)))
                .collect()
        };
        let (mut came, mut displaced) = (0, 0);
        for step in 0..4000 {
            let (with, without) = (by_unit(&with, step), by_unit(&without, step));
            let new = with
                .keys()
                .filter(|unit| !without.contains_key(unit))
                .collect::<Vec<_>>();
            assert!(new.is_empty() || new == [&7], "{new:?}");
            let lost = without.keys().filter(|unit| !with.contains_key(unit)).count();
            assert!(
                lost <= new.len() && (lost == 0 || without.len() == 3),
                "{lost} gave way to {new:?}"
            );
            let mut both = with
                .iter()
                .filter(|(unit, _)| **unit != 7 && without.contains_key(unit));
            assert!(
                both.all(|(unit, rows)| rows == &without[unit]),
                "the same records of all others"
            );
            came += new.len();
            displaced += lost;
        }
        assert!(displaced > 50 && came > displaced + 50, "{displaced} of {came}");
    }

    /// Units of places that are taken: those of the first dataset by slot, records after them.
    fn units_of(sampler: &PooledSampler, step: u64) -> Vec<u64> {
        let places = sampler.places(step).unwrap();
        places
            .chunks(sampler.units.records_per_unit())
            .filter_map(|place| Some(unit_of(place[0]?)))
            .collect()
    }

    #[test]
    fn a_unit_has_its_turn_once_in_so_many_steps_at_every_start_whatever_records_are_used() {
        let classes = 3;
        let mut turn = BTreeMap::new();
        for (start, order, steps) in [([3; 32], [4; 32], 0..60), ([5; 32], [6; 32], 60..121)] {
            let mut sampler = of_units(u64::MAX / 2, 2, 16);
            sampler.sampler = PoissonSampler::new(start, u64::MAX / 2);
            sampler.order = RandomOrder::new(order);
            let sampler = sampler.in_classes(classes, [9; 32]).unwrap();
            for step in steps {
                for unit in units_of(&sampler, step) {
                    let turn = turn.entry(unit).or_insert(step % classes);
                    assert_eq!(*turn, step % classes, "unit {unit} at step {step}");
                }
            }
        }
        assert_eq!(turn.len(), 7 + 5, "{turn:?}");
    }

    /// `⌈n/b⌉` of a class' price is of the slots that can be drawn: rows of the first dataset are none.
    #[test]
    fn classes_are_of_declared_units() {
        let sampler = || of_units(u64::MAX, 2, 16);
        for count in [1, 3, 32] {
            let sampler = sampler().in_classes(count, [9; 32]).unwrap();
            let classes = sampler.classes.as_ref().unwrap();
            assert_eq!(classes.of_slot.len(), 16 + 16);
            for class in 0..count as u32 {
                let size = classes.of_slot.iter().filter(|&&of| of == class).count() as u64;
                assert!((32 / count..=32_u64.div_ceil(count)).contains(&size), "{size}");
            }
        }
        assert!(sampler().in_classes(33, [9; 32]).is_err());
    }

    #[test]
    fn classes_of_units_are_a_uniformly_random_placement_with_a_unit_less_too() {
        for removed in [None, Some(7)] {
            let mut counts = BTreeMap::<u64, [u32; 3]>::new();
            for key in 0..=255 {
                let mut sampler = of_units(u64::MAX, 2, 16);
                removed.into_iter().for_each(|slot| sampler.units.remove(0, slot));
                let sampler = sampler.in_classes(3, [key; 32]).unwrap();
                for step in 0..3 {
                    for unit in units_of(&sampler, step) {
                        counts.entry(unit).or_default()[step as usize] += 1;
                    }
                }
            }
            assert_eq!(counts.len(), 7 + 5 - usize::from(removed.is_some()));
            for (unit, counts) in counts {
                // 256/3 ± 7.5 (one standard deviation).
                assert!(
                    counts.iter().sum::<u32>() == 256 && counts.iter().all(|count| (50..120).contains(count)),
                    "{unit}: {counts:?}"
                );
            }
        }
    }
}
