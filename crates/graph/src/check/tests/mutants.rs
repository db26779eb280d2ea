//! Rule mutants: with one premise dropped, leaky programs are accepted, and the second oracle sees the leak.
//! So each premise is needed, and each oracle works.

use super::build::Build;
use super::leaky::{Seen, cases};
use super::oracle::judge;
use crate::check::premise::{Premise, dropping};

fn detected(premise: Premise) {
    let mut count = 0;
    for case in cases() {
        let Some((needed, seen)) = case.premise else {
            continue;
        };
        if needed != premise {
            continue;
        }
        let mut build = Build::classifier();
        (case.build)(&mut build);
        assert!(
            build.check().is_err(),
            "{}: accepted with every premise",
            case.name
        );
        let graph = dropping(premise, || build.check());
        let graph =
            graph.unwrap_or_else(|refusals| panic!("{}: refused without {premise:?}: {refusals}", case.name));
        let verdict = judge(&graph);
        assert_eq!(
            verdict.is_err(),
            seen == Seen::ByOracle,
            "{}: the oracle says {verdict:?}",
            case.name
        );
        count += 1;
    }
    assert!(count > 0, "no leaky program needs {premise:?}");
}

macro_rules! mutants {
    ($($name:ident: $premise:ident,)*) => {
        $(#[test] fn $name() { detected(Premise::$premise); })*

        #[test]
        fn every_premise_has_a_mutant() {
            // Exhaustive: a new premise without a mutant does not compile.
            let named = |premise: Premise| match premise { $(Premise::$premise => stringify!($name),)* };
            assert_eq!(named(Premise::NoState), "dropping_the_refusal_of_state_is_detected");
        }
    };
}

mutants! {
    dropping_batch_size_only_in_size_lists_is_detected: BatchSizeOnlyInSizeLists,
    dropping_batch_size_only_scaled_is_detected: BatchSizeOnlyScaled,
    dropping_iota_only_indexes_is_detected: IotaOnlyIndexes,
    dropping_one_batch_axis_is_detected: OneBatchAxis,
    dropping_randomness_per_sample_is_detected: RandomnessPerSample,
    dropping_alignment_of_batch_axes_is_detected: BatchAxesAligned,
    dropping_shared_spans_no_batch_is_detected: SharedSpansNoBatch,
    dropping_agreement_with_recorded_types_is_detected: RecordedTypesAgree,
    dropping_left_axes_pass_through_is_detected: LeftAxesPassThrough,
    dropping_whole_blocks_is_detected: BlocksStayWhole,
    dropping_dims_exclude_batch_is_detected: DimsExcludeBatch,
    dropping_empty_dims_mean_all_is_detected: EmptyDimsMeanAll,
    dropping_contraction_within_sample_is_detected: ContractionWithinSample,
    dropping_weight_is_shared_is_detected: WeightIsShared,
    dropping_reduction_none_is_detected: ReductionNone,
    dropping_batch_axis_untouched_is_detected: BatchAxisUntouched,
    dropping_joins_within_sample_is_detected: JoinsWithinSample,
    dropping_gather_within_sample_is_detected: GatherWithinSample,
    dropping_index_within_sample_is_detected: IndexWithinSample,
    dropping_unread_arguments_are_default_is_detected: UnreadArgumentsAreDefault,
    dropping_shapes_do_not_depend_on_values_is_detected: ShapesDoNotDependOnValues,
    dropping_the_refusal_of_state_is_detected: NoState,
    dropping_parameters_are_tapped_is_detected: ParametersAreTapped,
    dropping_batch_is_leading_is_detected: BatchIsLeading,
    dropping_taps_are_batch_first_is_detected: TapsAreBatchFirst,
    dropping_indices_within_contract_is_detected: IndicesWithinContract,
    dropping_loss_per_sample_is_detected: LossPerSample,
}
