"""Faults that tests must notice, for ``tools/sabotage.py``: a line or two each, from all parts.

Choose lines that say what the library does, and change them into what one might write by mistake.
Texts must be in their file exactly once; a test says so when one is not any more.
"""

from __future__ import annotations

from typing import NamedTuple


class Breakage(NamedTuple):
    """A fault to make on purpose.

    Attributes:
        name: What it is called.
        what: What is wrong then, in a sentence.
        file: The file that it is made in.
        before: A text that is in this file once.
        after: What takes its place.
        tests: The tests, or their files, one of which must fail. They are part of `make test`.
    """

    name: str
    what: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]


CORE = "projcore/core/"
ADAPTIVE = "plugins/projcore-adaptive/"
BASIC = "plugins/projcore-basic/"
CAST = "plugins/projcore-cast/"
CLOSURE = "plugins/projcore-closure/"
LAB = "plugins/projcore-lab/"
LOWRANK = "plugins/projcore-lowrank/"
SPECTRAL = "plugins/projcore-spectral/"
STRUCTURAL = "plugins/projcore-structural/"

KERNEL = [
    Breakage(
        "state-of-siblings",
        "Tensors made from the same parameter share their memory.",
        CORE + "state.py",
        before='f"{name}:{count}" if count else name',
        after="name",
        tests=(
            STRUCTURAL + "tests/test_split_fused.py::test_it_is_as_if_they_had_never_been_fused",
        ),
    ),
    Breakage(
        "state-anchor",
        "What belongs to a space as a whole moves to the first tensor that has a gradient.",
        CORE + "state.py",
        before="return State([self.nodes[i] for i in indices], self._anchor, self.path)",
        after="return State([self.nodes[i] for i in indices], self.nodes[indices[0]], self.path)",
        tests=(
            "tests/kernel/test_positions.py"
            "::test_shared_memory_stays_in_one_place_whichever_tensors_have_a_gradient",
        ),
    ),
    Breakage(
        "resume-counts",
        "Counts of steps begin at zero after loading.",
        CORE + "checkpoint.py",
        before="value.detach().clone()",
        after="value.detach().clone().zero_()",
        tests=("tests/kernel/test_state.py::test_loading_goes_on_as_if_never_stopped",),
    ),
    Breakage(
        "resume-dtypes",
        "Loading casts memory to the dtype of its parameter.",
        CORE + "checkpoint.py",
        before=".to(parameter.device, copy=True)",
        after=".to(parameter.device, parameter.dtype, copy=True)",
        tests=("tests/kernel/test_state.py::test_dtypes_stay_as_saved",),
    ),
    Breakage(
        "resume-shapes",
        "Memory of other shapes is loaded.",
        CORE + "checkpoint.py",
        before="return value.shape[skip:] == expected.shape[skip:] and value.ndim == expected.ndim",
        after="return True",
        tests=("tests/kernel/test_state.py::test_checkpoints_of_others",),
    ),
    Breakage(
        "settings-shared-names",
        "A setting that two modules share is set for both by its bare name.",
        CORE + "settings.py",
        before="if len(paths) > 1}",
        after="if len(paths) > 2}",
        tests=("tests/kernel/test_positions.py::test_its_settings_are_told_apart_by_position",),
    ),
    Breakage(
        "settings-of-groups",
        "All groups have the settings of the first.",
        CORE + "objective.py",
        before="return [values[group] for group in self.groups]",
        after="return [values[0] for group in self.groups]",
        tests=(BASIC + "tests/test_sgd.py::test_groups_and_schedules",),
    ),
    Breakage(
        "settings-merged",
        "Tensors merged from groups that disagree take the settings of the first.",
        CORE + "objective.py",
        before="        if len(origin) == 1\n        else common(",
        after="        if len(origin) >= 1\n        else common(",
        tests=(
            "tests/kernel/test_bad_input.py"
            "::test_groups_that_disagree_where_a_module_needs_one_value",
        ),
    ),
    Breakage(
        "objective-gradients",
        "An evaluation of the loss leaves its gradients behind.",
        CORE + "objective.py",
        before="                    parameter.grad = grad\n",
        after="                    pass\n",
        tests=("tests/kernel/test_storage.py::test_evaluations_leave_the_gradients_alone",),
    ),
    Breakage(
        "objective-some",
        "A module that works on some of the tensors gets the gradients of others.",
        CORE + "objective.py",
        before="None if grads is None else [grads[i] for i in self._indices]",
        after="None if grads is None else grads[: len(self._indices)]",
        tests=(CLOSURE + "tests/test_sam.py::test_a_frozen_parameter_stays_where_it_is",),
    ),
    Breakage(
        "crossing-plane",
        "Inside a lossy projection the loss is evaluated without what the projection drops.",
        CORE + "crossing.py",
        before='if crossing.projection.geometry == "linear":',
        after="if False:",
        tests=(
            "tests/kernel_projection/test_crossing.py"
            "::test_a_trial_point_stays_on_the_plane_through_the_parameters",
        ),
    ),
    Breakage(
        "crossing-refresh",
        "The update enters a subspace by the basis of the step before.",
        CORE + "passage.py",
        before="    crossing.refresh(update)\n"
        "    if projection.project_update:\n"
        '        projected = crossing.down(update, "update")\n'
        "    else:\n"
        '        projected = crossing.down(objective.grads, "grads")\n',
        after="    if projection.project_update:\n"
        '        projected = crossing.down(update, "update")\n'
        "    else:\n"
        '        projected = crossing.down(objective.grads, "grads")\n'
        "    crossing.refresh(update)\n",
        tests=(
            "tests/kernel_projection/test_crossing.py::test_one_refresh_a_step_and_one_map_for_all",
        ),
    ),
    Breakage(
        "crossing-index",
        "A tensor is numbered by its place among those of one call, not by its parameter.",
        CORE + "crossing.py",
        before='self.projection.named("init", index=self.objective.sources[i][0])',
        after='self.projection.named("init", index=i)',
        tests=(
            LOWRANK + "tests/test_random_subspace.py"
            "::test_a_matrix_has_its_basis_whichever_others_have_a_gradient",
        ),
    ),
    Breakage(
        "projection-needs",
        "A projection accepts modules that need what it does not hand in.",
        CORE + "projection.py",
        before="            if missing:\n",
        after="            if False:\n",
        tests=("tests/kernel_projection/test_crossing.py::test_needs_are_checked_when_built",),
    ),
    Breakage(
        "projection-missing-gradients",
        "A basis is learnt from tensors that have no gradient.",
        CORE + "projection.py",
        before='if objective.active is None or self.scope == "all" or not self.learns:',
        after="if True:",
        tests=(
            "tests/kernel_projection/test_passing.py::test_refresh_gets_tensors_with_a_gradient_only",
        ),
    ),
    Breakage(
        "overwriting-parameters",
        "Inside a subspace AdamW takes what was projected for the parameters.",
        CORE + "passage.py",
        before="module.writes_itself and not module.needs",
        after="module.writes_itself",
        tests=("tests/kernel_projection/test_spends.py::test_it_is_bitwise_the_same",),
    ),
    Breakage(
        "transport-forgets-second-moments",
        "Second moments stay in the old basis when all else is transported.",
        CORE + "transport.py",
        before="        if kind in KEPT:\n",
        after='        if kind in (*KEPT, "second"):\n',
        tests=("tests/kernel_projection/test_change_of_map.py::test_transport_by_kind",),
    ),
    Breakage(
        "transport-nested",
        "Memory in a projection inside a projection stays in the old basis of the outer one.",
        CORE + "transport.py",
        before='moved = move(before.up(tensors, "update"), kind)',
        after='moved = before.up(tensors, "update")',
        tests=(
            "tests/kernel_projection/test_change_of_map.py"
            "::test_transport_through_a_linear_projection",
        ),
    ),
    Breakage(
        "reset-keeps",
        "The policy reset keeps the memory inside.",
        CORE + "transport.py",
        before='elif policy == "reset" or (wide and newcomers):',
        after="elif wide and newcomers:",
        tests=("tests/kernel_projection/test_change_of_map.py::test_reset",),
    ),
    Breakage(
        "folding-order",
        "A learning rate behind weight decay does not act on the decay.",
        CORE + "writing.py",
        before="Blend(a * scale, a * decay + b)",
        after="Blend(a * scale, decay + b)",
        tests=(
            "tests/kernel/test_folding.py::test_a_step_is_what_its_modules_say_one_after_the_other",
        ),
    ),
    Breakage(
        "blend-sign",
        "Weight decay that is folded into the write makes parameters grow.",
        CORE + "blend.py",
        before="tensors = list(torch._foreach_add(tensors, decays))",
        after="tensors = list(torch._foreach_sub(tensors, decays))",
        tests=(
            "tests/kernel/test_folding.py::test_a_step_is_what_its_modules_say_one_after_the_other",
        ),
    ),
    Breakage(
        "writing-repeats",
        "What was interrupted right after it had written is written once more.",
        CORE + "writing.py",
        before="                if written:\n                    break\n",
        after="",
        tests=("tests/kernel/test_writing.py::test_what_has_written_is_not_repeated",),
    ),
    Breakage(
        "pieces-count",
        "Each piece of a large tensor counts a step of its own.",
        CORE + "pieces.py",
        before="            elif not last:\n                value = value.clone()\n",
        after="",
        tests=("tests/kernel/test_plan.py::test_piece_by_piece",),
    ),
    Breakage(
        "items-order",
        "The items of a batch come back in another order than they went in.",
        CORE + "items.py",
        before="for item in batch.unbind(0)]",
        after="for item in batch.flip(0).unbind(0)]",
        tests=(LOWRANK + "tests/test_laws.py::test_laws[galore(rank=2, period=2)-batched]",),
    ),
    Breakage(
        "memory-of-parameters",
        "Storages that parameters hold are counted as state, too.",
        CORE + "memory.py",
        before="state = storages(value for _, value in entries) - weights",
        after="state = storages(value for _, value in entries)",
        tests=(
            "tests/kernel/test_memory.py::test_what_a_parameter_or_gradient_holds_is_counted_there",
        ),
    ),
    Breakage(
        "describe-bytes",
        "The description shows the memory of the first parameter for all.",
        CORE + "describe.py",
        before="flatten(trees[index])",
        after="flatten(trees[0])",
        tests=("tests/kernel/test_describe.py::test_the_table_foretells_the_memory",),
    ),
    Breakage(
        "optimizer-retry",
        "A step whose closure fails in the middle leaves memory half changed.",
        CORE + "optimizer.py",
        before='copied = "closure" in self.needs',
        after="copied = False",
        tests=(
            "tests/kernel/test_faults.py"
            "::test_a_step_whose_closure_failed_is_tried_again_as_if_it_had_not",
        ),
    ),
    Breakage(
        "module-missing-gradients",
        "Transforms step parameters that have no gradient.",
        CORE + "module.py",
        before="active = objective.active if objective.active is not None else range(len(groups))",
        after="active = range(len(groups))",
        tests=(
            "tests/kernel/test_gradients.py::test_without_a_gradient_nothing_of_a_parameter_changes",
        ),
    ),
    Breakage(
        "compile-settings",
        "A learning rate is a constant of the compiled step.",
        CORE + "optimizer.py",
        before="        if not isinstance(value, float):\n            return value\n",
        after="        return value\n",
        tests=("tests/kernel/test_compile.py::test_one_graph_compiled_once",),
    ),
    Breakage(
        "presence-frozen",
        "Frozen parameters take part, and get memory.",
        CORE + "presence.py",
        before="if (p.requires_grad or i in took_part or p.grad is not None) and not is_lazy(p)",
        after="if not is_lazy(p)",
        tests=(
            "tests/kernel/test_presence.py::test_a_frozen_first_layer_costs_nothing_and_resumes",
        ),
    ),
    Breakage(
        "presence-anchor",
        "Memory of a merged space stays where it was when a first parameter joins.",
        CORE + "presence.py",
        before="                if not is_shared(key):\n",
        after="                if False:\n",
        tests=(
            "tests/kernel/test_presence.py"
            "::test_unfreezing_joins_and_a_checkpoint_from_before_loads",
        ),
    ),
    Breakage(
        "presence-changed",
        "A parameter of another dtype goes on with memory of the old one.",
        CORE + "presence.py",
        before="return not left_behind and (old[1] == new[1] or value.dtype == expected.dtype)",
        after="return True",
        tests=("tests/kernel/test_presence.py::test_a_parameter_that_changed_is_named",),
    ),
    Breakage(
        "state-live",
        "A state dict that is kept shows old memory.",
        CORE + "optimizer.py",
        before="replace_entries(self.state[parameter], entries)",
        after="self.state[parameter] = entries",
        tests=("plugins/projcore-basic/tests/test_laws.py::test_laws",),
    ),
    Breakage(
        "autocast-inside",
        "Autocast rounds the optimizer's own products.",
        CORE + "autocast.py",
        before="    if not active:\n",
        after="    if active or not active:\n",
        tests=("plugins/projcore-lowrank/tests/test_laws.py::test_laws",),
    ),
    Breakage(
        "nonfinite-skip",
        "A step that is to be left out raises an error.",
        CORE + "optimizer.py",
        before="            if not error.skip:\n                raise\n",
        after="            raise\n",
        tests=("tests/kernel/test_nonfinite.py::test_skip_is_as_if_the_step_had_not_been",),
    ),
    Breakage(
        "refresh-learns",
        "A map that is made from no data leaves out tensors without a gradient.",
        CORE + "projection.py",
        before='return not self._named["refresh"].isdisjoint({"tensors", "grads", "args"})',
        after="return True",
        tests=("plugins/projcore-cast/tests/test_laws.py::test_laws",),
    ),
    Breakage(
        "names-order",
        "A checkpoint goes to parameters by their order, whatever their names are.",
        CORE + "checkpoint.py",
        before="    return order, [place[name] for group in theirs for name in group]\n",
        after="    return order, None\n",
        tests=("tests/kernel/test_by_name.py",),
    ),
    Breakage(
        "rules-order",
        "Of several rules that hold, the last counts.",
        "projcore/rules.py",
        before="next((i for i, rule in enumerate(self.rules) if rule.matches(candidate)), None)",
        after="([i for i, rule in enumerate(self.rules) if rule.matches(candidate)] or [None])[-1]",
        tests=(STRUCTURAL + "tests/test_route.py::test_each_route_is_an_optimizer_of_its_own",),
    ),
]

HOST = [
    Breakage(
        "manager-rollback",
        "What a plugin registered before it failed stays.",
        "projcore/manager.py",
        before="            self._pluggy.register(hooks, plugin.name)\n"
        "            self._check_hooks(hooks)\n"
        "            self.components += tuple(self._draft)\n",
        after="            self._pluggy.register(hooks, plugin.name)\n"
        "            self.components += tuple(self._draft)\n"
        "            self._check_hooks(hooks)\n",
        tests=(
            "tests/discovery/test_isolation.py"
            "::test_what_registered_before_an_unknown_hook_is_rolled_back",
        ),
    ),
    Breakage(
        "manager-isolation",
        "An error in one plugin ends the look-up of all.",
        "projcore/manager.py",
        before="        except BaseException as error:\n            return replace(\n",
        after="        except ImportError as error:\n            return replace(\n",
        tests=(
            "tests/discovery/test_isolation.py::test_what_a_failing_hook_registered_is_rolled_back",
        ),
    ),
    Breakage(
        "lookup-alias",
        "An alias hides the component that has this very name.",
        "projcore/_lookup.py",
        before="return exact or [component for component in among if short in component.aliases]",
        after="return [component for component in among if short in component.aliases] or exact",
        tests=("tests/discovery/test_lookup.py::test_an_exact_name_beats_an_alias",),
    ),
    Breakage(
        "registry-late",
        "A plugin that was installed after the first look is not found.",
        "projcore/registry.py",
        before="        manager.discover(again=True)\n",
        after="        manager.discover()\n",
        tests=("tests/discovery/test_lookup.py::test_a_name_is_looked_for_once_more",),
    ),
    Breakage(
        "registry-imports-torch",
        "Listing names imports torch.",
        "projcore/registry.py",
        before="from projcore import _lookup\n",
        after="import torch  # noqa: F401\n\nfrom projcore import _lookup\n",
        tests=("tests/discovery/test_lazy.py::test_torch_is_not_imported",),
    ),
    Breakage(
        "spec-defaults",
        "An argument that equals its default is left out, though it is of another type.",
        CORE + "module.py",
        before="if type(value) is not type(default) or value != default:",
        after="if value != default:",
        tests=("tests/discovery/test_spec.py::test_what_is_built_prints_back",),
    ),
    Breakage(
        "switches-distributions",
        "A plugin cannot be disabled by the name of its distribution.",
        "projcore/_scan.py",
        before="            frozenset({plugin, canonical(name)}),\n            point.load,",
        after="            frozenset({plugin}),\n            point.load,",
        tests=("tests/discovery/test_scan.py::test_it_may_be_disabled_by_either_name",),
    ),
]

KIT = [
    Breakage(
        "kit-round-trip",
        "The law of the round trip compares a point with itself.",
        "projcore/testing/laws/round_trip.py",
        before="again = made.project(made.unproject(inside, current), current)",
        after="again = inside",
        tests=(
            "tests/laws/test_kit_can_fail.py"
            "::test_that_law_reports_it[round_trip-TransposedParams]",
        ),
    ),
    Breakage(
        "kit-tolerance",
        "The kit takes any two lists of tensors of the same shapes for equal.",
        "projcore/testing/law.py",
        before="            error <= limit,\n",
        after="            True,\n",
        tests=("tests/laws/test_kit_can_fail.py::test_that_law_reports_it[adjoint-Mix]",),
    ),
    Breakage(
        "kit-bits",
        "The kit takes any two tensors of the same shape and dtype for bitwise equal.",
        "projcore/testing/law.py",
        before="return torch.equal(*bits)",
        after="return True",
        tests=("tests/laws/test_kit.py::test_bits_of_a_tensor_with_a_stride_of_its_own",),
    ),
    Breakage(
        "kit-expected",
        "A failure that was announced and does not come is no failure.",
        "projcore/testing/check.py",
        before='status == "passed":\n        status = "failed"\n',
        after='status == "passed":\n',
        tests=("tests/laws/test_kit.py::test_expected_failures_are_strict",),
    ),
]

PLUGINS = [
    # structural
    Breakage(
        "vector-order",
        "Tensors come out of vectors in the order of the vectors.",
        STRUCTURAL + "src/projcore_structural/layout.py",
        before="return [result[i] for i in range(len(params))]",
        after="return list(result.values())",
        tests=(STRUCTURAL + "tests/test_vector_by.py::test_each_rule_is_a_vector",),
    ),
    Breakage(
        "blocks-end",
        "What is left at the end of a dimension is in no block.",
        STRUCTURAL + "src/projcore_structural/blocks.py",
        before="runs = [(number, whole), (rest, 1)]",
        after="runs = [(number, whole)]",
        tests=(STRUCTURAL + "tests/test_blocks.py::test_blocks_are_those_of_loops",),
    ),
    Breakage(
        "route-checkpoint",
        "A checkpoint of other routes is loaded.",
        STRUCTURAL + "src/projcore_structural/route.py",
        before='kinds = {"route": "fixed"}',
        after='kinds = {"route": "scalar"}',
        tests=(STRUCTURAL + "tests/test_route.py::test_resume_checks_the_routes",),
    ),
    Breakage(
        "mask-seed",
        "The seed of a mask has no effect.",
        STRUCTURAL + "src/projcore_structural/mask.py",
        before="torch.Generator().manual_seed(self.seed)",
        after="torch.Generator().manual_seed(0)",
        tests=(STRUCTURAL + "tests/test_mask.py::test_a_seed_is_a_choice",),
    ),
    Breakage(
        "tangent-way-out",
        "What modules make of a tangent is not made one again on the way out.",
        STRUCTURAL + "src/projcore_structural/tangent_sphere.py",
        before="return self.project(list(projected_tensors), params)",
        after="return list(projected_tensors)",
        tests=(
            STRUCTURAL + "tests/test_tangent_sphere.py"
            "::test_the_update_is_orthogonal_whatever_runs_inside",
        ),
    ),
    # cast
    Breakage(
        "master-rounded",
        "Master copies are rounded to the dtype of the parameters in every step.",
        CAST + "src/projcore_cast/to.py",
        before='state["master"] = state["master"] - update',
        after='state["master"] = (state["master"] - update).to(param.dtype).to(update.dtype)',
        tests=("tests/ecosystem/test_master_weights.py::test_it_moves_as_the_float32_run_rounds",),
    ),
    Breakage(
        "master-stale",
        "A parameter that was changed from outside is put back by its master copy.",
        CAST + "src/projcore_cast/to.py",
        before="return torch.where((rounded == cast) | (cast != cast), master, cast)",
        after="return master",
        tests=("tests/ecosystem/test_master_weights.py::test_a_change_from_outside_is_honoured",),
    ),
    Breakage(
        "pairs-askew",
        "Pairs that do not lie in memory as complex numbers do are viewed as such.",
        CAST + "src/projcore_cast/view_as_real.py",
        before="if pairs.storage_offset() % 2 or any(",
        after="if False and any(",
        tests=(CAST + "tests/test_cast.py::test_pairs_that_lie_askew_are_copied",),
    ),
    # spectral
    Breakage(
        "dct-constant",
        "The first coefficient of the cosine transform is too large.",
        SPECTRAL + "src/projcore_spectral/dct.py",
        before="scales[0] = math.sqrt(1 / length)",
        after="scales[0] = math.sqrt(2 / length)",
        tests=(SPECTRAL + "tests/test_against_references.py::test_cosines_are_those_of_scipy",),
    ),
    Breakage(
        "half-spectrum-weights",
        "Pairs of frequencies have no weight, so the half spectrum is not orthonormal.",
        SPECTRAL + "src/projcore_spectral/fourier.py",
        before="torch.view_as_real(inner * math.sqrt(2))",
        after="torch.view_as_real(inner)",
        tests=(
            SPECTRAL + "tests/test_against_references.py"
            "::test_half_spectrum_is_that_of_scipy_with_weights",
        ),
    ),
    Breakage(
        "low-pass-highest",
        "A low pass keeps the highest coefficients.",
        SPECTRAL + "src/projcore_spectral/_spectral.py",
        before="z = z.narrow(dim, 0, count)",
        after="z = z.narrow(dim, z.shape[dim] - count, count)",
        tests=(
            SPECTRAL + "tests/test_inside.py::test_a_low_pass_keeps_slow_waves_and_drops_fast_ones",
        ),
    ),
    Breakage(
        "wavelets-odd",
        "Of an odd number of elements the first is carried to the next level, not the last.",
        SPECTRAL + "src/projcore_spectral/wavelets.py",
        before="torch.cat([coarse, x.narrow(dim, length - 1, 1)], dim)",
        after="torch.cat([coarse, x.narrow(dim, 0, 1)], dim)",
        tests=(
            SPECTRAL + "tests/test_against_references.py"
            "::test_the_last_of_an_odd_number_is_carried",
        ),
    ),
    # lowrank
    Breakage(
        "refresh-without-period",
        "A basis is learnt in every step, whatever the period.",
        LOWRANK + "src/projcore_lowrank/subspace.py",
        before='periodic = (state["step"] + offset) % settings["period"] == 0',
        after="periodic = True",
        tests=(LOWRANK + "tests/test_low_rank.py::test_refreshes_are_spread_over_the_period",),
    ),
    Breakage(
        "refresh-of-infinities",
        "Inf and NaN enter a basis.",
        LOWRANK + "src/projcore_lowrank/subspace.py",
        before="if bool(torch.stack(parts.aminmax()).isfinite().all()):",
        after="if True:",
        tests=(LOWRANK + "tests/test_low_rank.py::test_infinite_gradients_never_enter_a_basis",),
    ),
    Breakage(
        "product-decay",
        "Where a product goes straight into a parameter, weight decay makes it grow.",
        LOWRANK + "src/projcore_lowrank/subspace.py",
        before="beta = 1 - blend.decay",
        after="beta = 1 + blend.decay",
        tests=(LOWRANK + "tests/test_low_rank.py::test_what_is_written_is_what_combine_makes",),
    ),
    Breakage(
        "fira-norms",
        "Fira's residual is measured with the part that is inside the subspace.",
        LOWRANK + "src/projcore_lowrank/_combine.py",
        before="[scale**2 - 2 * scale for scale in scales]",
        after="[0.0 for scale in scales]",
        tests=(LOWRANK + "tests/test_low_rank.py::test_updates_are_the_published_formulas",),
    ),
    Breakage(
        "growth-unlimited",
        "The norm of what Fira and APOLLO scale grows as it likes.",
        LOWRANK + "src/projcore_lowrank/_combine.py",
        before="shrink = torch.where(now > allowed, allowed / now, 1.0)",
        after="shrink = torch.ones_like(now)",
        tests=(LOWRANK + "tests/test_low_rank.py::test_updates_are_the_published_formulas",),
    ),
    Breakage(
        "random-repeats",
        "A random subspace is the same after every refresh.",
        LOWRANK + "src/projcore_lowrank/random_subspace.py",
        before='key = mix(self.seed, state["index"], refreshes)',
        after='key = mix(self.seed, state["index"], 1)',
        tests=(
            LOWRANK + "tests/test_random_subspace.py"
            "::test_seed_place_and_refresh_each_make_another_matrix",
        ),
    ),
    Breakage(
        "random-shared",
        "All matrices of one shape have the same random subspace.",
        LOWRANK + "src/projcore_lowrank/random_subspace.py",
        before='key = mix(self.seed, state["index"], refreshes)',
        after="key = mix(self.seed, 0, refreshes)",
        tests=(
            LOWRANK + "tests/test_random_subspace.py"
            "::test_seed_place_and_refresh_each_make_another_matrix",
        ),
    ),
    Breakage(
        "coordinates-memory",
        "Coordinates that are chosen for the first time get the memory of others.",
        LOWRANK + "src/projcore_lowrank/coordinate_subspace.py",
        before="return found.mul_(stays.unsqueeze(-1) if dim == -2 else stays)",
        after="return found",
        tests=(
            LOWRANK + "tests/test_coordinate_subspace.py::test_momentum_against_dense_matrices",
        ),
    ),
    Breakage(
        "ldadam-momentum",
        "What the momentum loses as the basis turns is only partly made good.",
        LOWRANK + "src/projcore_lowrank/ldadam.py",
        before=".mul_(beta / (1 - beta)), moment",
        after=".mul_(beta), moment",
        tests=(LOWRANK + "tests/test_ldadam.py::test_it_is_the_published_method",),
    ),
    Breakage(
        "soap-own-gradient",
        "SOAP's bases are made with the gradient that they then rotate.",
        LOWRANK + "src/projcore_lowrank/soap_rotation.py",
        before="        made = iter(new_bases([states[i] for i in due]))\n",
        after="        self._learn(tensors, states, settings)\n"
        "        made = iter(new_bases([states[i] for i in due]))\n",
        tests=(LOWRANK + "tests/test_soap_rotation.py::test_250_steps_of_the_published_method",),
    ),
    Breakage(
        "tucker-variances",
        "Second moments follow new Tucker bases as first ones do.",
        LOWRANK + "src/projcore_lowrank/tucker.py",
        before='carry = multiply if kind == "first" else multiply_squares',
        after="carry = multiply",
        tests=(LOWRANK + "tests/test_tucker.py::test_adam_inside_follows_the_policy",),
    ),
    Breakage(
        "plane-columns",
        "The columns of a dense random plane are longer the more blocks there are.",
        LOWRANK + "src/projcore_lowrank/intrinsic_dimension.py",
        before="yield block * (math.sqrt(rows / length) / norms)",
        after="yield block / norms",
        tests=(LOWRANK + "tests/test_intrinsic_dimension.py::test_columns_have_unit_length",),
    ),
    Breakage(
        "recipe-scale",
        "GaLore's recipe does not scale what comes out of the subspace.",
        LOWRANK + "src/projcore_lowrank/recipes.py",
        before='galore = {"period": period, "scale": scale, "side": side, "refresh": refresh}',
        after='galore = {"period": period, "scale": 1.0, "side": side, "refresh": refresh}',
        tests=(
            LOWRANK + "tests/test_references.py"
            "::test_recipes_are_the_published_formulas[galore_adamw]",
        ),
    ),
    # adaptive
    Breakage(
        "adam-correction",
        "Adam's correction of the second moment is one step ahead.",
        ADAPTIVE + "src/projcore_adaptive/adam.py",
        before="correction2 = [1 - beta2**count for count in counts]",
        after="correction2 = [1 - beta2 ** (count + 1) for count in counts]",
        tests=(ADAPTIVE + "tests/test_against_torch.py::test_200_steps",),
    ),
    Breakage(
        "adam-fused-count",
        "The fused kernel corrects Adam's moments as in the step before.",
        ADAPTIVE + "src/projcore_adaptive/_fused.py",
        before="torch.tensor(float(count) if bias_correction else math.inf,",
        after="torch.tensor(float(count + 1) if bias_correction else math.inf,",
        tests=(ADAPTIVE + "tests/test_fused.py::test_it_is_what_the_operations_one_by_one_give",),
    ),
    Breakage(
        "adamw-sign",
        "AdamW's decay makes parameters grow where it writes them itself.",
        ADAPTIVE + "src/projcore_adaptive/adam.py",
        before="Blend(scale, decay + scale * own)",
        after="Blend(scale, decay - scale * own)",
        tests=(ADAPTIVE + "tests/test_against_torch.py::test_200_steps",),
    ),
    Breakage(
        "lion-order",
        "Lion's momentum takes in the update before the sign is taken.",
        ADAPTIVE + "src/projcore_adaptive/lion.py",
        before="    mixed = torch._foreach_mul(exp_avgs, beta1)\n"
        "    lerp_(exp_avgs, tensors, 1 - beta2)\n",
        after="    lerp_(exp_avgs, tensors, 1 - beta2)\n"
        "    mixed = torch._foreach_mul(exp_avgs, beta1)\n",
        tests=(ADAPTIVE + "tests/test_lion.py::test_numbers",),
    ),
    Breakage(
        "muon-shape",
        "Muon takes longer steps for wide matrices, not for tall ones.",
        ADAPTIVE + "src/projcore_adaptive/muon.py",
        before="math.sqrt(max(1, rows / max(1, columns)))",
        after="math.sqrt(max(1, columns / max(1, rows)))",
        tests=(ADAPTIVE + "tests/test_muon.py::test_200_steps",),
    ),
    Breakage(
        "adafactor-rows",
        "Adafactor's means of rows are not divided by their own mean.",
        ADAPTIVE + "src/projcore_adaptive/adafactor.py",
        before="(row_var / row_var.mean(-2, keepdim=True).clamp(min=eps)) * col_var",
        after="row_var * col_var",
        tests=(ADAPTIVE + "tests/test_adafactor.py::test_200_steps",),
    ),
    Breakage(
        "adan-first-step",
        "Adan takes the first gradient for a difference to zero.",
        ADAPTIVE + "src/projcore_adaptive/adan.py",
        before="[count == 1 for count in counts]",
        after="[False for count in counts]",
        tests=(ADAPTIVE + "tests/test_by_hand.py::test_200_steps",),
    ),
    Breakage(
        "rmsprop-centered",
        "Centered RMSprop adds the square of the mean.",
        ADAPTIVE + "src/projcore_adaptive/rmsprop.py",
        before="grad_avgs, grad_avgs, -1)",
        after="grad_avgs, grad_avgs, 1)",
        tests=(ADAPTIVE + "tests/test_against_torch.py::test_200_steps",),
    ),
    Breakage(
        "trust-ratio-zero",
        "A parameter that is zero never moves under a trust ratio.",
        ADAPTIVE + "src/projcore_adaptive/trust_ratio.py",
        before="torch.where((above > 0) & (below > 0), above / below, torch.ones_like(below))",
        after="above / below",
        tests=(ADAPTIVE + "tests/test_by_hand.py::test_ratios_are_1_where_a_norm_is_0",),
    ),
    # basic
    Breakage(
        "lr-default",
        "A learning rate that is folded into the write is that of the constructor.",
        BASIC + "src/projcore_basic/lr.py",
        before='return [(scalar(settings[0]["lr"]), 0.0)] * len(states)',
        after='return [(scalar(self.defaults["lr"]), 0.0)] * len(states)',
        tests=(BASIC + "tests/test_sgd.py::test_groups_and_schedules",),
    ),
    Breakage(
        "decay-sign",
        "Weight decay makes parameters grow.",
        BASIC + "src/projcore_basic/weight_decay.py",
        before='return [(1.0, scalar(settings[0]["weight_decay"]))] * len(states)',
        after='return [(1.0, -scalar(settings[0]["weight_decay"]))] * len(states)',
        tests=(BASIC + "tests/test_sgd.py::test_decay_is_coupled_or_decoupled_by_its_place",),
    ),
    Breakage(
        "clip-lengthens",
        "Clipping makes short updates longer.",
        BASIC + "src/projcore_basic/clip_norm.py",
        before="    factor = (max_norm / (norm + TINY)).clamp(max=1.0)\n",
        after="    factor = max_norm / (norm + TINY)\n",
        tests=(BASIC + "tests/test_clipping.py::test_clip_norm",),
    ),
    Breakage(
        "momentum-dampening",
        "Dampening acts on the first update, too.",
        BASIC + "src/projcore_basic/heavy_ball.py",
        before="1 - dampening * (scalar(step) > 1)",
        after="1 - dampening",
        tests=(BASIC + "tests/test_sgd.py::test_200_steps",),
    ),
    Breakage(
        "ema-correction",
        "A running mean is not corrected for having begun at zero.",
        BASIC + "src/projcore_basic/ema.py",
        before="    if steps is None:\n        return exp_avgs\n",
        after="    return exp_avgs\n",
        tests=(BASIC + "tests/test_averages.py::test_mean_is_the_first_half_of_adam",),
    ),
    Breakage(
        "accumulation-mean",
        "The mean over micro-batches leaves out the last in its count.",
        BASIC + "src/projcore_basic/gradient_accumulation.py",
        before='[float(nodes[i]["count"] + 1) for i in due]',
        after='[float(max(1, nodes[i]["count"])) for i in due]',
        tests=(
            BASIC + "tests/test_gradient_accumulation.py"
            "::test_steps_on_micro_batches_are_one_on_all",
        ),
    ),
    Breakage(
        "noise-repeats",
        "Noise is the same in every step.",
        BASIC + "src/projcore_basic/gradient_noise.py",
        before='hashed(state["stream"], state["step"])',
        after='hashed(state["stream"], 0)',
        tests=(BASIC + "tests/test_gradient_noise.py::test_noises_have_nothing_in_common",),
    ),
    Breakage(
        "torch-optim-state",
        "An optimizer of torch forgets its state from step to step.",
        BASIC + "src/projcore_basic/torch_optim.py",
        before="            if state.get(STEPS):\n                inner.state[leaf] = {",
        after="            if False:\n                inner.state[leaf] = {",
        tests=(BASIC + "tests/test_torch_optim.py::test_same_trajectory",),
    ),
    # closure
    Breakage(
        "lbfgs-two-loop",
        "The second loop of L-BFGS forgets the first.",
        CLOSURE + "src/projcore_closure/lbfgs.py",
        before="alpha=alpha - dot(y, result) / curvature",
        after="alpha=-dot(y, result) / curvature",
        tests=(CLOSURE + "tests/test_lbfgs.py::test_two_loop_is_the_bfgs_formula",),
    ),
    Breakage(
        "lbfgs-carried",
        "L-BFGS makes a pair across a change of the basis.",
        CLOSURE + "src/projcore_closure/lbfgs.py",
        before='if all(float(node["last_check"]) == check for node in nodes):',
        after='if all(float(node["last_check"]) >= 0 for node in nodes):',
        tests=(CLOSURE + "tests/test_lbfgs.py::test_histories_are_carried_to_another_basis",),
    ),
    Breakage(
        "wolfe-curvature",
        "A line search takes the first step that makes the loss fall, whatever the slope there.",
        CLOSURE + "src/projcore_closure/strong_wolfe.py",
        before="elif abs(trial.slope) <= -c2 * start.slope:",
        after="elif True:",
        tests=(CLOSURE + "tests/test_strong_wolfe.py::test_conditions_hold_on_random_functions",),
    ),
    Breakage(
        "armijo-slope",
        "Backtracking is content with a step at which the loss does not fall.",
        CLOSURE + "src/projcore_closure/backtracking.py",
        before="line.start.value + c * step * line.start.slope",
        after="line.start.value",
        tests=(CLOSURE + "tests/test_backtracking.py::test_takes_the_first_step_that_suffices",),
    ),
    Breakage(
        "line-uphill",
        "A line search follows an update that points uphill.",
        CLOSURE + "src/projcore_closure/_line_search.py",
        before="        if slope <= 0:\n",
        after="        if False:\n",
        tests=(CLOSURE + "tests/test_strong_wolfe.py::test_an_update_uphill_becomes_the_gradient",),
    ),
    Breakage(
        "conjugate-directions",
        "The directions of conjugate gradients are not conjugate.",
        CLOSURE + "src/projcore_closure/newton_cg.py",
        before="alpha=square / before)",
        after="alpha=0.0)",
        tests=(
            CLOSURE + "tests/test_newton_cg.py"
            "::test_conjugate_gradients_solve_within_the_krylov_space",
        ),
    ),
    Breakage(
        "sam-downhill",
        "SAM takes the gradient downhill.",
        CLOSURE + "src/projcore_closure/sam.py",
        before='factor = float(settings["rho"]) / norm if norm > 0 else 0.0',
        after='factor = -float(settings["rho"]) / norm if norm > 0 else 0.0',
        tests=(CLOSURE + "tests/test_sam.py::test_is_the_gradient_uphill",),
    ),
    Breakage(
        "spsa-repeats",
        "SPSA draws the same signs in every step.",
        CLOSURE + "src/projcore_closure/spsa.py",
        before="manual_seed(self.seed * 1_000_003 + step)",
        after="manual_seed(self.seed * 1_000_003)",
        tests=(CLOSURE + "tests/test_gradient_free.py::test_spsa_is_its_formula",),
    ),
    # lab
    Breakage(
        "lab-equal-time",
        "Runs are compared after the time of the slowest.",
        LAB + "src/projcore_lab/comparison.py",
        before="return min((run.seconds for run in self.finished), default=None)",
        after="return max((run.seconds for run in self.finished), default=None)",
        tests=(LAB + "tests/test_measures.py::test_runs_are_compared_after_the_time_that_all_had",),
    ),
    Breakage(
        "lab-validation",
        "The loss within a time is the first that was measured.",
        LAB + "src/projcore_lab/runs.py",
        before="for c in reversed(self.checks) if c.seconds <= seconds",
        after="for c in self.checks if c.seconds <= seconds",
        tests=(LAB + "tests/test_measures.py::test_losses_by_time",),
    ),
    Breakage(
        "lab-tuning",
        "Tuning takes the learning rate of the highest loss.",
        LAB + "src/projcore_lab/tune.py",
        before="lr=losses[min(losses)]",
        after="lr=losses[max(losses)]",
        tests=(LAB + "tests/test_compare.py::test_tune_finds_a_learning_rate_and_shows_it",),
    ),
]

BREAKAGES = [*KERNEL, *HOST, *KIT, *PLUGINS]
