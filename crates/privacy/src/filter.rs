//! Filters: whether one more run, chosen in view of all earlier results, still fits a dataset's lifetime (ε, δ).
//!
//! Here belongs the arithmetic that decides: exact, without floats, the same on every machine. What a run costs comes
//! from accountants as floats and is rounded up *before* it is added ([`amount`]), so that sums do not depend on their
//! order and a replayed ledger decides as it did. [`basic`] adds (ε, δ), [`renyi`] adds Rényi divergences at the orders
//! that [`terms`] fixed; an account uses one of them, for ever. [`odometer`] says what has been spent so far.
//!
//! # Setting
//! *Fully adaptive composition* (Rogers, Roth, Ullman and Vadhan 2016): in round i an analyst who has seen all earlier
//! outputs chooses a mechanism Mᵢ and the neighbours D, D′ differ in one unit, the same in all rounds. A *filter* for
//! (ε, δ) says after each choice, from the promised privacy of this and the earlier mechanisms alone, whether Mᵢ may run;
//! it is valid if the whole transcript W, however the analyst chooses and whenever they stop, has
//! P\[W(D) ∈ S\] ≤ e^ε·P\[W(D′) ∈ S\] + δ for all S. Analysts may be deterministic: their coins, independent of the data,
//! can be fixed and averaged over afterwards.
//!
//! # Basic
//! Rogers et al. 2016, <https://arxiv.org/abs/1605.08294>, section 3: with mechanisms that are (εᵢ, δᵢ)-private, admitting while Σεᵢ ≤ ε and Σδᵢ ≤ δ is
//! a valid filter. Runs that are interactive themselves and overlap compose alike: every valid filter
//! for (ε, δ) extends to them (Haney et al. 2023, <https://arxiv.org/abs/2309.05901>).
//!
//! # Rényi, one order
//! Feldman and Zrnic 2021, <https://arxiv.org/abs/2008.11193> (also Lécuyer 2021, <https://arxiv.org/abs/2103.01379>, and
//! Whitehouse et al. 2023, <https://arxiv.org/abs/2203.05481>): fix α > 1, and let each Mᵢ have Rényi divergence
//! at most ρᵢ of order α between its outputs on D and D′, given the past, in both directions; ρᵢ itself may depend on
//! the past. If Σρᵢ ≤ b in every transcript, the transcript's divergence is at most b. In short: with Lᵢ the loss of
//! round i, E\[exp((α−1)·Σ_{j≤i}(Lⱼ − ρⱼ))\] never rises with i under D, as each factor has conditional mean at most 1; so
//! E\[exp((α−1)·ΣLᵢ)\] ≤ exp((α−1)·b). By Canonne, Kamath and Steinke 2020,
//! <https://arxiv.org/abs/2004.00010>, proposition 12, the transcript is then (ε, δ)
//! -private for δ = exp((α−1)(b−ε))·(1−1/α)^α/(α−1), solved for b in [`terms`].
//!
//! # Rényi, several orders
//! Orders α₁ … α_m, b_j the largest budget that order j turns into (ε, δ_j), Σδ_j ≤ δ. **Admit a run iff some order j has
//! Σρ(α_j), this run included, at most b_j.** The order that ends up holding depends on the transcript, so one order's
//! theorem does not apply to it; the split of δ does.
//!
//! *Claim.* This is a valid filter for (ε, Σδ_j).
//!
//! *Proof.* Call j *alive* while its sum is at most b_j. Every admitted run counts in all sums, sums never fall, so an
//! order once dead stays dead, and at every moment some order is alive. For a transcript w let J(w) be the first of the
//! orders alive at its end. For each j let V_j be the transcript cut just before the first run that kills j. It is the
//! transcript of another adaptive interaction, of the analyst who stops there, whose sums at order j are at most b_j in
//! every case: by the theorem above V_j is (ε, δ_j)-private. Whether a transcript w is *complete*, that is whether the
//! analyst stops after w, is a function of w. Let S_j be the w in S that are complete with J(w) = j. Then
//!
//! {W ∈ S, J(W) = j} = {V_j ∈ S_j}:
//!
//! if W = w is complete and j alive at its end, then nothing was cut and V_j = w; if V_j = w ∈ S_j, then W begins with w,
//! and w being complete W = w. The S_j are disjoint and fill the possible part of S, hence
//!
//! P\[W ∈ S\] = Σ_j P\[V_j ∈ S_j\] ≤ Σ_j (e^ε·P′\[V_j ∈ S_j\] + δ_j) = e^ε·P′\[W ∈ S\] + Σδ_j. ∎
//!
//! Admitting "if basic *or* Rényi composition admits" is the same argument with one more filter, and would take its own
//! share of δ; nothing here does it.
//!
//! # Steps, reserves and early stops
//! The rounds may be taken to be single *steps* of runs, in the order in which they really happen: each is a fixed
//! mechanism given all that came before, whichever run it belongs to. (Of a run with correlated noise the round is a *turn* of
//! a class, counted whole where it begins: what follows is computed from it. Such a run is never charged in part.) So runs may overlap, and a run may stop at any step,
//! for reasons that earlier outputs give (an adaptive stopping time): the sums of the proof are those of steps *started*,
//! which never fall. A reserve holds a run's planned steps, and freeing what was never started is sound, for at every
//! moment started ≤ committed + reserved. A dead order's *reserve* may fall back below its budget and admit again: its
//! sum of started steps never was above.
//!
//! # Assumptions
//! - The promised (ε, δ) or divergences bound each mechanism given its past (the accountants' theorems).
//! - The decision whether, what and when to run depends on the data through earlier outputs alone; in particular
//!   admission uses sums of promised costs, never data.
//! - Orders, weights and lifetime are fixed before the first run.

pub mod amount;
pub mod basic;
mod logarithm;
pub mod odometer;
pub mod renyi;
pub mod terms;

#[cfg(test)]
mod tests;
