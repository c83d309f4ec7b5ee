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
ENGINE = "projcore/engine/"
TEST_ENGINE = "tests/kernel/test_engine.py"
LAUNCHES = "tests/launches/"
LAUNCHED = "test_a_step_asks_of_the_device_what_the_table_says"
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
        "projcore/_trees.py",
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
        before="for i in indices], self._anchor, self.path)",
        after="for i in indices], self._homes[indices[0]], self.path)",
        tests=(
            "tests/kernel/test_positions.py"
            "::test_shared_memory_stays_in_one_place_whichever_tensors_have_a_gradient",
        ),
    ),
    Breakage(
        "resume-counts",
        "Counts of steps begin at zero after loading.",
        ENGINE + "checkpoint.py",
        before="return value.detach().to(device, copy=True)",
        after="return value.detach().to(device, copy=True).mul_(float(value.ndim > 0))",
        tests=("tests/kernel/test_state.py::test_loading_goes_on_as_if_never_stopped",),
    ),
    Breakage(
        "resume-dtypes",
        "Loading casts memory to the dtype of its parameter.",
        ENGINE + "checkpoint.py",
        before=".to(device, copy=True)",
        after=".to(device, parameter.dtype, copy=True)",
        tests=("tests/kernel/test_state.py::test_dtypes_stay_as_saved",),
    ),
    Breakage(
        "resume-shapes",
        "Memory of other shapes is loaded.",
        ENGINE + "checkpoint.py",
        before="return value.shape[skip:] == expected.shape[skip:] and value.ndim == expected.ndim",
        after="return True",
        tests=("tests/kernel/test_state.py::test_checkpoints_of_others",),
    ),
    Breakage(
        "settings-shared-names",
        "A setting that two modules share is set for both by its bare name.",
        ENGINE + "names.py",
        before="if len(paths) > 1}",
        after="if len(paths) > 2}",
        tests=("tests/kernel/test_positions.py::test_its_settings_are_told_apart_by_position",),
    ),
    Breakage(
        "settings-of-groups",
        "All groups have the settings of the first.",
        ENGINE + "facts.py",
        before="values = self._groups[group]",
        after="values = self._groups[0]",
        tests=(BASIC + "tests/test_sgd.py::test_groups_and_schedules",),
    ),
    Breakage(
        "settings-merged",
        "Tensors merged from groups that disagree take the settings of the first.",
        ENGINE + "facts.py",
        before='return common(f"The module at {path!r}", every)',
        after="return every[0]",
        tests=(TEST_ENGINE + "::test_settings_of_what_is_merged_must_agree",),
    ),
    Breakage(
        "objective-gradients",
        "An evaluation of the loss leaves its gradients behind.",
        ENGINE + "facts.py",
        before="                    parameter.grad = grad\n",
        after="                    pass\n",
        tests=("tests/kernel/test_storage.py::test_evaluations_leave_the_gradients_alone",),
    ),
    Breakage(
        "objective-some",
        "A module that works on some of the tensors gets the gradients of others.",
        "projcore/_views.py",
        before="None if grads is None else [grads[i] for i in self._indices]",
        after="None if grads is None else grads[: len(self._indices)]",
        tests=(CLOSURE + "tests/test_sam.py::test_a_frozen_parameter_stays_where_it_is",),
    ),
    Breakage(
        "crossing-plane",
        "Inside a lossy projection the loss is evaluated without what the projection drops.",
        ENGINE + "crossing.py",
        before='if crossing.projection.geometry == "linear":',
        after="if False:",
        tests=(
            "tests/kernel_projection/test_crossing.py::test_a_trial_point_stays_on_the_plane_through_the_parameters",
        ),
    ),
    Breakage(
        "crossing-refresh",
        "The update enters a subspace by the basis of the step before.",
        ENGINE + "inside.py",
        before=(
            "        crossing.refresh(update)\n"
            "        return crossing, update\n\n"
            "    def _cross(self, frame: Frame, crossing: Crossing, update: list[Tensor])"
            " -> None:\n"
            '        """Runs what is inside."""\n'
            "        inner, projected = self._enter(crossing, update)\n"
        ),
        after=(
            "        return crossing, update\n\n"
            "    def _cross(self, frame: Frame, crossing: Crossing, update: list[Tensor])"
            " -> None:\n"
            "        inner, projected = self._enter(crossing, update)\n"
            "        crossing.refresh(update)\n"
        ),
        tests=(
            "tests/kernel_projection/test_crossing.py::test_one_refresh_a_step_and_one_map_for_all",
        ),
    ),
    Breakage(
        "crossing-index",
        "A tensor is numbered by its place among those of one call, not by its parameter.",
        ENGINE + "crossing.py",
        before='self.projection.named("init", key=self.objective.space.keys[i])',
        after='self.projection.named("init", key=i)',
        tests=(
            LOWRANK + "tests/test_random_subspace.py"
            "::test_a_matrix_has_its_basis_whichever_others_have_a_gradient",
        ),
    ),
    Breakage(
        "projection-needs",
        "A projection accepts modules that need what it does not hand in.",
        "projcore/_arguments.py",
        before="        if missing:\n",
        after="        if False:\n",
        tests=("tests/kernel_projection/test_crossing.py::test_needs_are_checked_when_built",),
    ),
    Breakage(
        "projection-missing-gradients",
        "A basis is learnt from tensors that have no gradient.",
        ENGINE + "plan.py",
        before='if space.active is None or projection.scope == "all" or not projection.learns:',
        after="if True:",
        tests=(
            "tests/kernel_projection/test_passing.py::test_refresh_gets_tensors_with_a_gradient_only",
        ),
    ),
    Breakage(
        "overwriting-parameters",
        "What a projection made of the parameters is written in their place, and is lost.",
        ENGINE + "inside.py",
        before=(
            "        view.nbytes == target.nbytes\n"
            "        and view.untyped_storage()._cdata == target.untyped_storage()._cdata\n"
        ),
        after="        view.shape == target.shape\n",
        tests=(TEST_ENGINE + "::test_whatever_changes_between_steps",),
    ),
    Breakage(
        "transport-forgets-second-moments",
        "Second moments stay in the old basis when all else is transported.",
        ENGINE + "transport.py",
        before="        if kind in KEPT:\n",
        after='        if kind in (*KEPT, "second"):\n',
        tests=("tests/kernel_projection/test_change_of_map.py::test_transport_by_kind",),
    ),
    Breakage(
        "transport-nested",
        "Memory in a projection inside a projection stays in the old basis of the outer one.",
        ENGINE + "transport.py",
        before='moved = outer(before.up(tensors, "update"), kind)',
        after='moved = before.up(tensors, "update")',
        tests=(
            "tests/kernel_projection/test_change_of_map.py::test_transport_through_a_linear_projection",
        ),
    ),
    Breakage(
        "reset-keeps",
        "The policy reset keeps the memory inside.",
        ENGINE + "transport.py",
        before='elif policy == "reset" or (wide and newcomers):',
        after="elif wide and newcomers:",
        tests=("tests/kernel_projection/test_change_of_map.py::test_reset",),
    ),
    Breakage(
        "folding-order",
        "A learning rate behind weight decay does not act on the decay.",
        ENGINE + "ending.py",
        before="Blend(a * blend.scale, a * blend.decay + b)",
        after="Blend(a * blend.scale, blend.decay + b)",
        tests=(
            "tests/kernel/test_folding.py::test_a_step_is_what_its_modules_say_one_after_the_other",
        ),
    ),
    Breakage(
        "blend-sign",
        "Weight decay that is folded into the write makes parameters grow.",
        ENGINE + "blended.py",
        before="update = list(torch._foreach_add(update, decays))",
        after="update = list(torch._foreach_sub(update, decays))",
        tests=(
            "tests/kernel/test_folding.py::test_a_step_is_what_its_modules_say_one_after_the_other",
        ),
    ),
    Breakage(
        "writing-repeats",
        "What was interrupted right after it had written is written once more.",
        ENGINE + "commit.py",
        before=("            if written:\n                return waiting\n"),
        after="",
        tests=("tests/kernel/test_writing.py::test_what_has_written_is_not_repeated",),
    ),
    Breakage(
        "items-order",
        "The items of a batch come back in another order than they went in.",
        ENGINE + "items.py",
        before="for item in batch.unbind(0)]",
        after="for item in batch.flip(0).unbind(0)]",
        tests=(LOWRANK + "tests/test_laws.py::test_laws[galore(rank=2, period=2)-batched]",),
    ),
    Breakage(
        "memory-of-parameters",
        "Storages that parameters hold are counted as state, too.",
        "projcore/report/memory.py",
        before="state = storages(value for _, value in entries) - weights",
        after="state = storages(value for _, value in entries)",
        tests=(
            "tests/kernel/test_memory.py::test_what_a_parameter_or_gradient_holds_is_counted_there",
        ),
    ),
    Breakage(
        "describe-bytes",
        "The description shows the memory of the first parameter for all.",
        "projcore/report/describe.py",
        before="or expected[index]",
        after="or expected[0]",
        tests=("tests/kernel/test_describe.py::test_the_table_foretells_the_memory",),
    ),
    Breakage(
        "optimizer-retry",
        "A step whose closure fails in the middle leaves memory half changed.",
        "projcore/optimizer.py",
        before='if "closure" in self.needs:',
        after="if False:",
        tests=(
            "tests/kernel/test_faults.py::test_a_step_whose_closure_failed_is_tried_again_as_if_it_had_not",
        ),
    ),
    Breakage(
        "module-missing-gradients",
        "Transforms step parameters that have no gradient.",
        ENGINE + "nodes.py",
        before="active = range(len(space)) if space.active is None else space.active",
        after="active = range(len(space))",
        tests=(
            "tests/kernel/test_gradients.py::test_without_a_gradient_nothing_of_a_parameter_changes",
        ),
    ),
    Breakage(
        "compile-settings",
        "A learning rate is a constant of the compiled step.",
        ENGINE + "compiler.py",
        before=("        if not isinstance(value, float):\n            return value\n"),
        after="        return value\n",
        tests=("tests/kernel/test_compile.py::test_one_graph_compiled_once",),
    ),
    Breakage(
        "compile-refresh",
        "A projection refreshes its map before the modules that stand before it have run.",
        ENGINE + "passes/trace.py",
        before="        if run and (late or node.untraceable):\n",
        after="        if run and node.untraceable:\n",
        tests=("tests/kernel/test_compile.py::test_a_refresh_runs_in_python",),
    ),
    Breakage(
        "compile-settled",
        "State that is reset inside a projection is created anew in a graph.",
        ENGINE + "passes/trace.py",
        before=" and all(node.is_settled for node in self.nodes):\n",
        after=":\n",
        tests=("tests/kernel/test_compile.py::test_a_refresh_runs_in_python",),
    ),
    Breakage(
        "compile-lent",
        "What was made for a graph alone is saved.",
        ENGINE + "inside.py",
        before="                del state[name]\n",
        after="                pass\n",
        tests=("tests/kernel/test_compile.py::test_what_no_graph_can_make",),
    ),
    Breakage(
        "compile-plans",
        "Every set of gradients is compiled.",
        "projcore/optimizer.py",
        before="            if len(self._plans) <= COMPILED:\n",
        after="            if True:\n",
        tests=("tests/kernel/test_compile.py::test_many_sets_of_gradients",),
    ),
    Breakage(
        "presence-frozen",
        "Frozen parameters take part, and get memory.",
        ENGINE + "presence.py",
        before="if (p.requires_grad or i in took_part or p.grad is not None) and not is_lazy(p)",
        after="if not is_lazy(p)",
        tests=(
            "tests/kernel/test_presence.py::test_a_frozen_first_layer_costs_nothing_and_resumes",
        ),
    ),
    Breakage(
        "presence-anchor",
        "Memory of a merged space stays where it was when a first parameter joins.",
        ENGINE + "presence.py",
        before="                if not is_shared(key):\n",
        after="                if False:\n",
        tests=(
            "tests/kernel/test_presence.py::test_unfreezing_joins_and_a_checkpoint_from_before_loads",
        ),
    ),
    Breakage(
        "presence-changed",
        "A parameter of another dtype goes on with memory of the old one.",
        ENGINE + "presence.py",
        before="return not left_behind and (old[1] == new[1] or value.dtype == expected.dtype)",
        after="return True",
        tests=("tests/kernel/test_presence.py::test_a_parameter_that_changed_is_named",),
    ),
    Breakage(
        "state-live",
        "A state dict that is kept shows old memory.",
        ENGINE + "commit.py",
        before="replace_entries(live, entries)",
        after="self._saved[parameter] = entries",
        tests=(BASIC + "tests/test_laws.py::test_laws",),
    ),
    Breakage(
        "autocast-inside",
        "Autocast rounds the optimizer's own products.",
        ENGINE + "autocast.py",
        before="    if not active:\n",
        after="    if active or not active:\n",
        tests=(LOWRANK + "tests/test_laws.py::test_laws",),
    ),
    Breakage(
        "nonfinite-skip",
        "A step that is to be left out raises an error.",
        "projcore/optimizer.py",
        before=("            if not error.skip:\n                raise\n"),
        after="            raise\n",
        tests=("tests/kernel/test_nonfinite.py::test_skip_is_as_if_the_step_had_not_been",),
    ),
    Breakage(
        "refresh-learns",
        "A map that is made from no data leaves out tensors without a gradient.",
        "projcore/_hooks.py",
        before='return not self._named["refresh"].isdisjoint({"tensors", "grads", "args"})',
        after="return True",
        tests=("plugins/projcore-cast/tests/test_laws.py::test_laws",),
    ),
    Breakage(
        "names-order",
        "A checkpoint goes to parameters by their order, whatever their names are.",
        ENGINE + "checkpoint.py",
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

ENGINE_BREAKAGES = [
    Breakage(
        "plan-scope-all",
        "A module of scope all is called for each group by itself.",
        ENGINE + "nodes.py",
        before="            return [(None, list(active))]\n",
        after="            pass\n",
        tests=(TEST_ENGINE + "::test_it_is_torchs_step",),
    ),
    Breakage(
        "plan-groups",
        "Tensors of all groups go into the call of the first.",
        ENGINE + "nodes.py",
        before="found.setdefault(space.groups[i], [])",
        after="found.setdefault(space.groups[0], [])",
        tests=(TEST_ENGINE + "::test_it_is_torchs_step",),
    ),
    Breakage(
        "plan-whole",
        "A module that is planned for some of the tensors is taken for one of all.",
        ENGINE + "plan.py",
        before="return len(space) == self._size",
        after="return True",
        tests=(TEST_ENGINE + "::test_routes_in_routes_are_of_their_tensors",),
    ),
    Breakage(
        "plan-places",
        "Tensors of a space that is part of a part are looked for in the wrong places.",
        CORE + "space.py",
        before="places=[self.places[i] for i in indices]",
        after="places=list(indices)",
        tests=(TEST_ENGINE + "::test_routes_in_routes_are_of_their_tensors",),
    ),
    Breakage(
        "plan-awake-passing",
        "What a projection lets pass is not inside while it has no gradient.",
        ENGINE + "plan.py",
        before="if i in active or not projection.applies(tensor, settings[i])",
        after="if i in active",
        tests=(TEST_ENGINE + "::test_what_passes_has_state_from_the_first_step_on",),
    ),
    Breakage(
        "plan-order",
        "Something may follow what must come last.",
        ENGINE + "plan.py",
        before="if node.comes_last else ():",
        after="if False else ():",
        tests=(
            "tests/kernel_projection/test_crossing.py::test_nothing_follows_what_must_come_last",
        ),
    ),
    Breakage(
        "plan-observer-inside",
        "What looks at parameters may stand inside a linear projection.",
        ENGINE + "plan.py",
        before="        if self.around is not None:\n",
        after="        if False:\n",
        tests=(
            "tests/kernel_projection/test_crossing.py::test_what_must_come_last_stands_inside_layouts_only",
        ),
    ),
    Breakage(
        "plan-around",
        "A layout hides from what is inside it that a linear projection is around both.",
        ENGINE + "plan.py",
        before='around = projection if projection.geometry == "linear" else self.around',
        after='around = projection if projection.geometry == "linear" else None',
        tests=(
            TEST_ENGINE
            + "::test_what_looks_at_parameters_is_refused_deep_inside_a_linear_projection",
        ),
    ),
    Breakage(
        "plan-notes",
        "What a plan notes in the state is not there any more when state was removed.",
        ENGINE + "region.py",
        before="        self.renote()\n",
        after="",
        tests=(STRUCTURAL + "tests/test_route.py",),
    ),
    Breakage(
        "plan-rate-observed",
        "An average sees the parameters as they would be at rate 1.",
        ENGINE + "plan.py",
        before=(
            "            rated += _rates(space, left.intersection(node.where))\n"
            "            left.difference_update(node.where)\n"
        ),
        after="            pass\n",
        tests=("tests/kernel/test_rate.py::test_it_scales_the_whole_step",),
    ),
    Breakage(
        "plan-rate-inside",
        "The rate acts behind what must come last, not inside it.",
        ENGINE + "plan.py",
        before="if node.comes_last and not isinstance(node, Observe):",
        after="if False:",
        tests=("tests/kernel/test_rate.py::test_it_scales_the_whole_step",),
    ),
    Breakage(
        "plan-rate-parts",
        "The rate does not act in what a module runs by itself.",
        ENGINE + "facts.py",
        before="if self._names.rate_is_factor and any(node.comes_last for node in region.nodes):",
        after="if False:",
        tests=("tests/kernel/test_rate.py::test_it_scales_the_whole_step",),
    ),
    Breakage(
        "plan-map-state",
        "A plan does not know what a projection inside another keeps for its map.",
        ENGINE + "inside.py",
        before="            crossing.refresh(list(crossing.objective.template))",
        after="            pass",
        tests=(TEST_ENGINE + "::test_a_plan_knows_the_state_of_a_map_inside_another_projection",),
    ),
    Breakage(
        "hoist-tensors",
        "What works on whole tensors runs outside of a layout, too.",
        ENGINE + "plan.py",
        before='elementwise = module.total_scope == "element" or has_factor(module)',
        after='elementwise = module.total_scope != "all" or has_factor(module)',
        tests=(TEST_ENGINE + "::test_whatever_changes_where_modules_run_outside",),
    ),
    Breakage(
        "hoist-fresh-gradient",
        "What begins with the gradient runs outside of a layout, on the update.",
        ENGINE + "plan.py",
        before='if projection.geometry != "layout" or not projection.project_update:',
        after='if projection.geometry != "layout":',
        tests=("tests/kernel/test_plan.py::test_what_hands_in_the_gradient_anew_runs_inside",),
    ),
    Breakage(
        "hoist-casts",
        "What stands in a cast runs outside of it.",
        ENGINE + "plan.py",
        before='if projection.geometry != "layout" or not projection.project_update:',
        after='if projection.geometry == "linear" or not projection.project_update:',
        tests=(TEST_ENGINE + "::test_what_stands_in_a_cast_runs_in_it",),
    ),
    Breakage(
        "fold-order",
        "Coefficients are put together in the order from the end.",
        ENGINE + "passes/fold.py",
        before="folded.insert(0, node)",
        after="folded.append(node)",
        tests=(TEST_ENGINE + "::test_whatever_changes_between_steps",),
    ),
    Breakage(
        "fold-last",
        "What is not last is folded, and writes.",
        ENGINE + "passes/last.py",
        before="return all(own.isdisjoint(node.where) for node in nodes[k + 1 :])",
        after="return True",
        tests=(TEST_ENGINE + "::test_whatever_changes_between_steps",),
    ),
    Breakage(
        "fold-next",
        "A node is last if the next one is of other tensors.",
        ENGINE + "passes/last.py",
        before="nodes[k + 1 :]",
        after="nodes[k + 1 : k + 2]",
        tests=(TEST_ENGINE + "::test_whatever_changes_between_steps",),
    ),
    Breakage(
        "fuse-all",
        "What is made of all tensors is written by a kernel for each.",
        ENGINE + "nodes.py",
        before='return own and self.module.scope != "all"',
        after="return own",
        tests=(TEST_ENGINE + "::test_what_is_made_of_all_tensors_is_not_written_by_a_kernel",),
    ),
    Breakage(
        "fold-uniform",
        "One pair of coefficients is used for the tensors of all groups.",
        ENGINE + "ending.py",
        before="if len(pairs) == count and _uniform(pairs) and _uniform(blends):",
        after="if pairs and _uniform(pairs) and _uniform(blends):",
        tests=(TEST_ENGINE + "::test_whatever_changes_between_steps",),
    ),
    Breakage(
        "fold-outer",
        "Coefficients inside act behind those outside.",
        ENGINE + "ending.py",
        before="_after(one, *other) for one, other in zip(blends, outer, strict=True)",
        after="_after(other, *one) for one, other in zip(blends, outer, strict=True)",
        tests=(TEST_ENGINE + "::test_whatever_changes_between_steps",),
    ),
    Breakage(
        "split-twice",
        "A tensor is in two blocks.",
        ENGINE + "passes/split.py",
        before="            found.append([])\n            left",
        after="            found.append(found[-1][-1:] if found else [])\n            left",
        tests=(TEST_ENGINE + "::test_whatever_changes_between_steps",),
    ),
    Breakage(
        "split-none",
        "The last tensor is in no block.",
        ENGINE + "passes/split.py",
        before="for i in range(len(targets)) if active",
        after="for i in range(len(targets) - 1) if active",
        tests=(TEST_ENGINE + "::test_whatever_changes_between_steps",),
    ),
    Breakage(
        "split-factor",
        "The factor is left out in blocks.",
        ENGINE + "ending.py",
        before="        if factor is not None:\n",
        after="        if False:\n",
        tests=(TEST_ENGINE + "::test_whatever_changes_between_steps",),
    ),
    Breakage(
        "split-factor-of-some",
        "The factor of some tensors multiplies all.",
        ENGINE + "passes/split.py",
        before="if nodes and _is_factor_of_all(nodes[-1], ending):",
        after="if nodes and isinstance(nodes[-1], Call) and nodes[-1].has_factor:",
        tests=(TEST_ENGINE + "::test_whatever_changes_between_steps",),
    ),
    Breakage(
        "split-unbound",
        "Blocks work on the state of the plan.",
        ENGINE + "region.py",
        before=("targets)\n            self._bind_blocks()\n"),
        after="targets)\n",
        tests=(TEST_ENGINE + "::test_whatever_changes_between_steps",),
    ),
    Breakage(
        "split-not-bound-again",
        "Blocks go on with state that was removed.",
        ENGINE + "region.py",
        before=("node.bind(trees)\n        self._bind_blocks()\n"),
        after="node.bind(trees)\n",
        tests=(TEST_ENGINE + "::test_whatever_changes_between_steps",),
    ),
    Breakage(
        "split-later",
        "A block that counts is made when it is its turn, and made again.",
        ENGINE + "passes/split.py",
        before="later = not tail and all(node.repeatable for node in last)",
        after="later = not tail",
        tests=(TEST_ENGINE + "::test_what_counts_is_not_asked_again",),
    ),
    Breakage(
        "split-indices",
        "A part of a module takes the tensors of the region at its own places.",
        ENGINE + "nodes.py",
        before="places=[index[place] for place in space.places]",
        after="places=list(range(len(chosen)))",
        tests=(TEST_ENGINE + "::test_whatever_changes_between_steps",),
    ),
    Breakage(
        "bind-others",
        "A call works on the state of the first tensors, whichever are its own.",
        ENGINE + "nodes.py",
        before="        self.states = [self.site.state.nodes[i] for i in self.members]\n",
        after="        self.states = self.site.state.nodes[: len(self.members)]\n",
        tests=(TEST_ENGINE + "::test_it_is_torchs_step",),
    ),
    Breakage(
        "bind-ready",
        "A module does not see that the state that it made is gone.",
        ENGINE + "nodes.py",
        before=(
            "        if self.ready and (all(self.state.nodes) or not self.keeps):\n"
            "            return\n"
        ),
        after=(
            '        if self.__dict__.get("known"):\n'
            "            return\n"
            "        self.known = True\n"
        ),
        tests=(TEST_ENGINE + "::test_it_is_torchs_step",),
    ),
    Breakage(
        "bind-writers",
        "What writes goes on with the state that it found first.",
        ENGINE + "nodes.py",
        before="        self._writer = None\n",
        after="",
        tests=(TEST_ENGINE + "::test_whatever_changes_between_steps",),
    ),
    Breakage(
        "store-current",
        "State that somebody put in its place is not noticed.",
        "projcore/optimizer.py",
        before="if self._store is not None and self._store.is_current(parameters, key):",
        after="if self._store is not None:",
        tests=(TEST_ENGINE + "::test_it_is_torchs_step",),
    ),
    Breakage(
        "store-entries",
        "State that somebody put in its place is noticed only if its dict is another.",
        ENGINE + "commit.py",
        before="== len(self._known) and all(map(is_, values, self._known))",
        after="== len(self._known)",
        tests=(TEST_ENGINE + "::test_it_is_torchs_step",),
    ),
    Breakage(
        "store-plans",
        "Plans for other gradients go on with state that others have put together anew.",
        ENGINE + "commit.py",
        before="if key != self.key or len(parameters)",
        after="if len(parameters)",
        tests=(TEST_ENGINE + "::test_whatever_changes_between_steps",),
    ),
    Breakage(
        "store-bound",
        "A plan goes on with the state that it was bound to first.",
        ENGINE + "making.py",
        before="if self.store is not store:",
        after="if self.store is None:",
        tests=(TEST_ENGINE + "::test_it_is_torchs_step",),
    ),
    Breakage(
        "commit-state-first",
        "State is saved before parameters are written.",
        "projcore/optimizer.py",
        before="run_writes(writes, partial(_finish, live, save))",
        after="_finish(live, save)\n        run_writes(writes, lambda: None)",
        tests=(TEST_ENGINE + "::test_state_is_saved_behind_the_parameters",),
    ),
    Breakage(
        "commit-always",
        "State is saved although nothing was replaced.",
        "projcore/optimizer.py",
        before="    if live.changed:\n",
        after="    if True:\n",
        tests=(TEST_ENGINE + "::test_state_is_saved_where_it_was_replaced_and_only_there",),
    ),
    Breakage(
        "commit-run",
        "State that a module replaced is not saved.",
        ENGINE + "nodes.py",
        before="        frame.objective.context.changed |= self.site.keeps or any(self.states)\n",
        after="",
        tests=(TEST_ENGINE + "::test_what_was_replaced_is_in_the_state_after_each_step",),
    ),
    Breakage(
        "commit-folded",
        "State that changed while coefficients were asked for is not saved.",
        ENGINE + "nodes.py",
        before=("changed |= self.site.keeps\n        pairs"),
        after=("changed |= False\n        pairs"),
        tests=(TEST_ENGINE + "::test_what_coefficients_count_is_in_the_state_after_each_step",),
    ),
    Breakage(
        "commit-projections",
        "State that a projection replaced is not saved.",
        ENGINE + "inside.py",
        before="objective.context.changed |= self._keeps",
        after="objective.context.changed |= False",
        tests=(LOWRANK + "tests/test_low_rank.py",),
    ),
    Breakage(
        "commit-end",
        "State is saved before the last blocks are written.",
        ENGINE + "commit.py",
        before="queue.extendleft(reversed(made))",
        after="queue.extend(made)",
        tests=("tests/kernel/test_writing.py",),
    ),
    Breakage(
        "commit-made",
        "Making a block counts as having written.",
        ENGINE + "commit.py",
        before="            queue.extendleft(reversed(made))\n",
        after=("            queue.extendleft(reversed(made))\n            done += 1\n"),
        tests=("tests/kernel/test_writing.py",),
    ),
    Breakage(
        "commit-made-twice",
        "A block that was made again is written twice.",
        ENGINE + "commit.py",
        before="made[:] = later()",
        after="made += later()",
        tests=("tests/kernel/test_writing.py",),
    ),
    Breakage(
        "commit-interrupts",
        "A second interrupt counts as a failure.",
        ENGINE + "commit.py",
        before="failures += isinstance(error, Exception)",
        after="failures += 1",
        tests=("tests/kernel/test_writing.py",),
    ),
    Breakage(
        "commit-gives-up",
        "What fails once in the middle leaves parameters half written.",
        ENGINE + "commit.py",
        before="if failures == 2 and not written:",
        after="if failures == 1 and not written:",
        tests=("tests/kernel/test_writing.py",),
    ),
    Breakage(
        "commit-observed",
        "What has looked at the parameters looks again after an interrupt.",
        ENGINE + "ending.py",
        before="return versions != [tensor._version for tensor in seen]",
        after="return False",
        tests=(TEST_ENGINE + "::test_what_has_looked_does_not_look_again",),
    ),
    Breakage(
        "stale-settings",
        "A plan goes on although a setting that it depends on has changed.",
        "projcore/optimizer.py",
        before="if plan is None or not plan.holds(self.param_groups):",
        after="if plan is None:",
        tests=(
            STRUCTURAL + "tests/test_route.py",
            "tests/kernel_projection/test_passing.py",
        ),
    ),
    Breakage(
        "stale-reads",
        "It is not noted which settings a plan depends on.",
        ENGINE + "facts.py",
        before="        self._reads.add(self._keys[name])\n",
        after="",
        tests=(
            STRUCTURAL + "tests/test_route.py",
            "tests/kernel_projection/test_passing.py",
        ),
    ),
    Breakage(
        "stale-presence",
        "Parameters that require a gradient now are not noticed.",
        ENGINE + "presence.py",
        before="if joined or not (sticky",
        after="if not (sticky",
        tests=(
            "tests/kernel/test_presence.py::test_unfreezing_joins_and_a_checkpoint_from_before_loads",
        ),
    ),
    Breakage(
        "stale-shapes",
        "Parameters of another shape are not noticed.",
        ENGINE + "presence.py",
        before="[p.shape for p in members] == self._shapes",
        after="len(members) == len(self._shapes)",
        tests=(
            "tests/kernel/test_presence.py::test_a_parameter_that_changed_is_named",
            "tests/kernel/test_presence.py::test_before_the_first_step_parameters_may_change",
        ),
    ),
    Breakage(
        "stale-gradients",
        "A plan is used for other gradients, if there are as many.",
        "projcore/optimizer.py",
        before="return None if active is None else tuple(active)",
        after="return None if active is None else len(active)",
        tests=(TEST_ENGINE + "::test_it_is_torchs_step",),
    ),
    Breakage(
        "stale-groups",
        "A plan goes on when parameters were added.",
        "projcore/optimizer.py",
        before=("        self._note_presence(present)\n        self._reset_plan()\n"),
        after="        self._note_presence(present)\n",
        tests=("tests/kernel/test_gradients.py::test_groups_added_late",),
    ),
    Breakage(
        "stale-loaded",
        "A plan goes on when a checkpoint was loaded.",
        "projcore/optimizer.py",
        before=("of_members(self._parameters(), members))\n        self._reset_plan()\n"),
        after="of_members(self._parameters(), members))\n",
        tests=(TEST_ENGINE + "::test_loading_tells_who_takes_part",),
    ),
    Breakage(
        "stale-inside",
        "What runs inside a projection goes on when shapes there have changed.",
        ENGINE + "inside.py",
        before="if self.region is None or _shapes(projected) != self._shapes:",
        after="if self.region is None:",
        tests=(TEST_ENGINE + "::test_what_runs_inside_is_planned_anew_for_other_shapes",),
    ),
    Breakage(
        "stale-parts",
        "What a module runs by itself goes on with other state.",
        ENGINE + "facts.py",
        before=("        region.bind(state.trees)\n        return region.run"),
        after="        return region.run",
        tests=(BASIC + "tests/test_gradient_accumulation.py",),
    ),
    Breakage(
        "stale-parts-gradients",
        "What a module runs by itself goes on when other gradients are missing.",
        ENGINE + "facts.py",
        before="tuple(space.keys), active, shapes)",
        after="tuple(space.keys), None, shapes)",
        tests=(BASIC + "tests/test_gradient_accumulation.py",),
    ),
    Breakage(
        "keys-by-place",
        "Parameters are told apart by their places although they have names.",
        ENGINE + "keys.py",
        before="return place if name is None else crc32(name.encode())",
        after="return place",
        tests=("tests/kernel/test_keys.py",),
    ),
    Breakage(
        "old-argument",
        "A method that names an argument of the old contract is never given it.",
        "projcore/_hooks.py",
        before='if "index" in cls._named.get("init", ()):',
        after="if False:",
        tests=("tests/kernel/test_old_names.py",),
    ),
    Breakage(
        "keys-of-blocks",
        "All blocks of a matrix have one key.",
        ENGINE + "keys.py",
        before='crc32(f"{key}/{count}".encode()) if count else key',
        after="key",
        tests=("tests/kernel/test_keys.py",),
    ),
    Breakage(
        "load-counts-stay",
        "Counts stay on the device that a checkpoint was mapped to, and each costs a wait.",
        ENGINE + "checkpoint.py",
        before='device = parameter.device if like_parameter else torch.device("cpu")',
        after="device = parameter.device if like_parameter else value.device",
        tests=("tests/kernel/test_devices.py",),
    ),
    Breakage(
        "load-offloaded",
        "State of an offloaded parameter stays where its parameter is.",
        ENGINE + "nodes.py",
        before="node[key] = value.to(tensor.device)",
        after="pass",
        tests=("tests/kernel/test_devices.py",),
    ),
    Breakage(
        "passing-twice",
        "Tensors that pass a projection run outside of it and inside as well.",
        ENGINE + "plan.py",
        before="space = space.select([i for i in range(len(space)) if i not in set(outside)])",
        after="space = space.select(range(len(space)))",
        tests=("tests/kernel/test_passing.py",),
    ),
    Breakage(
        "passing-keeps-state",
        "A tensor that is no longer projected goes on with state of the shape inside.",
        ENGINE + "inside.py",
        before="for node in self.beside.state.over(trees).nodes:",
        after="for node in ():",
        tests=("tests/kernel/test_passing.py",),
    ),
    Breakage(
        "formats-in-one-call",
        "A call gets tensors of several dtypes and devices, which torch takes one by one.",
        ENGINE + "blended.py",
        before="found.setdefault((space.formats[i], space.template[i].dtype), [])",
        after="found.setdefault(None, [])",
        tests=("tests/kernel/test_formats.py",),
    ),
    Breakage(
        "part-of-step",
        "A module that plans its own step gets all tensors in the part that is of some.",
        ENGINE + "nodes.py",
        before="return Step(self.module, site.space, site.whole, inside)",
        after="return Step(self.module, site.space, site.whole, self._inside)",
        tests=("tests/kernel/test_in_backward.py", "tests/laws/test_laws.py"),
    ),
    Breakage(
        "part-forgets-observers",
        "What looks at the parameters is left out of parts.",
        ENGINE + "nodes.py",
        before="return Observe(*self.site.with_members(self.where, index), self.group)",
        after="return Observe(self.site.part(index), [], self.group)",
        tests=("tests/kernel/test_in_backward.py",),
    ),
    Breakage(
        "early-keeps-gradients",
        "A gradient is not freed when the step of its parameter is done.",
        ENGINE + "backward.py",
        before="parameter.grad = None",
        after="pass",
        tests=("tests/kernel/test_in_backward.py",),
    ),
    Breakage(
        "early-twice",
        "A second gradient of a parameter makes a second step.",
        ENGINE + "backward.py",
        before="if place in self.early.done:",
        after="if False:",
        tests=("tests/kernel/test_in_backward.py",),
    ),
    Breakage(
        "early-outlives-errors",
        "After an exception in backward the step goes on where it was.",
        ENGINE + "backward.py",
        before="except BaseException:\n                self.early = None",
        after="except BaseException:",
        tests=("tests/kernel/test_in_backward.py",),
    ),
    Breakage(
        "early-settings",
        "Settings that were written into groups are not checked before a step in backward.",
        ENGINE + "backward.py",
        before="optimizer._check_settings()\n            parameters",
        after="parameters",
        tests=("tests/kernel/test_in_backward.py",),
    ),
    Breakage(
        "early-several-processes",
        "Gradients that are averaged over processes later are taken as they are.",
        ENGINE + "backward.py",
        before='if several and not hasattr(parameter, "placements")',
        after='if False and not hasattr(parameter, "placements")',
        tests=("tests/kernel/test_in_backward.py",),
    ),
    Breakage(
        "stale-buckets",
        "All buckets use the plan of the first.",
        ENGINE + "making.py",
        before="key = tuple(places)",
        after="key = ()",
        tests=("tests/kernel/test_buckets.py::test_a_step_in_buckets_is_bitwise_the_whole_step",),
    ),
    Breakage(
        "inside-apart-decay",
        "What is written in place of parameters in a cast loses the decay that follows it.",
        ENGINE + "inside.py",
        before="Blend(-1.0, blend.decay) for blend in blends",
        after="Blend(-1.0) for blend in blends",
        tests=(
            CAST + "tests/test_convert.py::test_kernels_that_write_parameters_are_used_in_a_cast",
        ),
    ),
    Breakage(
        "inside-apart-reads",
        "Modules in a cast that read the parameters which they write are given zeros.",
        ENGINE + "inside.py",
        before='or "params" in projection.chain.total_needs',
        after="or False",
        tests=("tests/kernel/test_chains_and_nodes.py::test_a_chain_becomes_these_nodes",),
    ),
    Breakage(
        "inside-copies",
        "Parameters do not follow their master copies.",
        ENGINE + "inside.py",
        before="return [*made, *crossing.copies(some, through)]",
        after="return made",
        tests=(TEST_ENGINE + "::test_whatever_changes_between_steps",),
    ),
    Breakage(
        "inside-passing-twice",
        "What passes a projection is written twice.",
        ENGINE + "inside.py",
        before="*blended(some, result, how, self._alike(self.passing)),",
        after="*2 * blended(some, result, how, self._alike(self.passing)),",
        tests=(TEST_ENGINE + "::test_whatever_changes_between_steps",),
    ),
    Breakage(
        "inside-combine",
        "What a projection keeps of the residual is lost where it is written.",
        ENGINE + "inside.py",
        before=(
            "            done = crossing.combine(update, projected, result)\n"
            "            check_result(self.module, update, done)\n"
            "            return"
        ),
        after=(
            '            done = crossing.up(result, "update")\n'
            "            check_result(self.module, update, done)\n"
            "            return"
        ),
        tests=(TEST_ENGINE + "::test_whatever_changes_between_steps",),
    ),
    Breakage(
        "adam-counts-agree",
        "The fused kernel takes the count of one tensor for all.",
        ADAPTIVE + "src/projcore_adaptive/_fused.py",
        before="return counts[0] if counts.count(counts[0]) == len(counts) else None",
        after="return counts[0]",
        tests=(TEST_ENGINE + "::test_whatever_changes_between_steps",),
    ),
    Breakage(
        "adam-blends-agree",
        "The fused kernel writes all tensors by the blend of the first.",
        ADAPTIVE + "src/projcore_adaptive/adam.py",
        before="same = how.count(how[0]) == len(how) and (scale or not decay)",
        after="same = bool(scale or not decay)",
        tests=(TEST_ENGINE + "::test_whatever_changes_between_steps",),
    ),
    Breakage(
        "adam-no-scale",
        "The fused kernel divides a decay by a scale of 0.",
        ADAPTIVE + "src/projcore_adaptive/adam.py",
        before="how.count(how[0]) == len(how) and (scale or not decay)",
        after="how.count(how[0]) == len(how)",
        tests=(ADAPTIVE + "tests/test_fused.py::test_what_is_written_is_what_is_returned",),
    ),
    Breakage(
        "adam-first-targets",
        "The fused kernel writes the memory that parameters had in the first step.",
        ADAPTIVE + "src/projcore_adaptive/_fused.py",
        before="_kernel((targets, tensors, *memory)",
        after='_kernel((self.__dict__.setdefault("targets", targets), tensors, *memory)',
        tests=(TEST_ENGINE + "::test_whatever_changes_between_steps",),
    ),
    Breakage(
        "adam-counts-apart",
        "The counts of the state are not those that the fused kernel counts.",
        ADAPTIVE + "src/projcore_adaptive/_fused.py",
        before='            state["step"] = count\n',
        after="            pass\n",
        tests=(TEST_ENGINE + "::test_whatever_changes_between_steps",),
    ),
    Breakage(
        "adam-flag",
        "A kernel that failed is taken to have run.",
        ADAPTIVE + "src/projcore_adaptive/_fused.py",
        before="ran: list[object] = []",
        after='ran: list[object] = self.__dict__.setdefault("ran", [])',
        tests=(TEST_ENGINE + "::test_a_write_that_fails_in_the_middle_is_made_good",),
    ),
    Breakage(
        "adam-written",
        "It is not seen that the fused kernel has run.",
        ADAPTIVE + "src/projcore_adaptive/_fused.py",
        before="Write(targets[0], run, partial(bool, ran))",
        after="Write(targets[0], run)",
        tests=(
            ADAPTIVE
            + "tests/test_fused.py::test_an_interrupt_behind_the_kernel_does_not_repeat_it",
        ),
    ),
    Breakage(
        "adam-recounts",
        "A kernel that is run again counts once more.",
        ADAPTIVE + "src/projcore_adaptive/_fused.py",
        before="self.counts.fill_(count)",
        after="self.counts.add_(1)",
        tests=(TEST_ENGINE + "::test_a_write_that_fails_in_the_middle_is_made_good",),
    ),
    Breakage(
        "adam-versions",
        "Autograd does not see that the fused kernel wrote parameters.",
        ADAPTIVE + "src/projcore_adaptive/_fused.py",
        before="        torch.autograd.graph.increment_version(targets)\n",
        after="",
        tests=("tests/kernel/test_folding.py::test_autograd_sees_that_parameters_were_written",),
    ),
    Breakage(
        "adam-accelerators",
        "Fused Adam is used on the CPU alone.",
        ADAPTIVE + "src/projcore_adaptive/_fused.py",
        before="return device_type in _get_fused_kernels_supported_devices()",
        after='return device_type == "cpu"',
        tests=(ADAPTIVE + "tests/test_fused.py::test_a_step_on_an_accelerator_is_two_launches",),
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
        "projcore/_arguments.py",
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
        after='state["master"] = (state["master"] - update).bfloat16().to(update.dtype)',
        tests=("tests/ecosystem/test_master_weights.py::test_it_moves_as_the_float32_run_rounds",),
    ),
    Breakage(
        "master-stale",
        "A parameter that was changed from outside is put back by its master copy.",
        CAST + "src/projcore_cast/to.py",
        before="torch._foreach_add_(bits, factors)",
        after="torch._foreach_add_(factors, bits)",
        tests=("tests/ecosystem/test_master_weights.py::test_a_change_from_outside_is_honoured",),
    ),
    Breakage(
        "offload-unread",
        "The CPU reads what an accelerator still copies.",
        CAST + "src/projcore_cast/_convert.py",
        before="        _wait(source)\n",
        after="",
        tests=(
            CAST + "tests/test_convert.py::test_an_offload_waits_once_and_before_anything_is_read",
        ),
    ),
    Breakage(
        "offload-pageable",
        "An accelerator copies from memory that may be written before it has.",
        CAST + "src/projcore_cast/_convert.py",
        before="tensors = _copied(tensors, [_pinned(tensor, dtype) for tensor in tensors])",
        after="pass",
        tests=(
            CAST + "tests/test_convert.py::test_an_offload_waits_once_and_before_anything_is_read",
        ),
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
        LOWRANK + "src/projcore_lowrank/_batches.py",
        before="finite = extremes.view(-1, 2).isfinite().all(-1)",
        after="finite = extremes.view(-1, 2).isfinite().all(-1).fill_(True)",
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
        before="shrink = (allowed / now).clamp_(max=1.0)",
        after="shrink = torch.ones_like(now)",
        tests=(LOWRANK + "tests/test_low_rank.py::test_updates_are_the_published_formulas",),
    ),
    Breakage(
        "stack-of-one-basis",
        "All matrices of a stack are multiplied by the basis of the first.",
        LOWRANK + "src/projcore_lowrank/_batches.py",
        before="torch.stack([state[end] for state in states])",
        after="torch.stack([states[0][end] for state in states])",
        tests=(LOWRANK + "tests/test_batches.py::test_a_stack_takes_the_steps_of_its_matrices",),
    ),
    Breakage(
        "kept-views",
        "What is made for a stack of matrices is kept as views of one memory.",
        LOWRANK + "src/projcore_lowrank/_batches.py",
        before="list(torch._foreach_mul(list(tensor.unbind()), 1))",
        after="list(tensor.unbind())",
        tests=(LOWRANK + "tests/test_batches.py::test_what_is_kept_has_memory_of_its_own",),
    ),
    Breakage(
        "noise-unmixed",
        "Random bits of neighbouring places depend on each other.",
        LOWRANK + "src/projcore_lowrank/_seeded.py",
        before="    for _ in range(3):\n        x.mul_(MULTIPLIER)",
        after="    for _ in range(1):\n        x.mul_(MULTIPLIER)",
        tests=(LOWRANK + "tests/test_seeded.py::test_bits_are_fair_and_independent",),
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
        before=".mul_(beta / (1 - beta))",
        after=".mul_(beta)",
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
        "soap-unasked",
        "On an accelerator, SOAP's bases are made of averages that are not finite.",
        LOWRANK + "src/projcore_lowrank/soap_rotation.py",
        before="self._check_averages([tensors[i] for i in due], [states[i] for i in due])",
        after="pass",
        tests=(
            LOWRANK + "tests/test_soap_rotation.py"
            "::test_a_device_is_asked_before_bases_are_made_and_not_in_other_steps",
        ),
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
        before="return count if self.bias_correction else math.inf",
        after="return count + 1 if self.bias_correction else math.inf",
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
        "lion-in-place",
        "The sign of what is not finite is a number.",
        ADAPTIVE + "src/projcore_adaptive/lion.py",
        before="    torch._foreach_add_(mixed, exp_avgs, alpha=0)",
        after="",
        tests=(ADAPTIVE + "tests/test_lion.py::test_momentum_that_is_lost_shows",),
    ),
    Breakage(
        "ops-at-once-order",
        "What belongs to one tensor is given to another.",
        "projcore/ops.py",
        before="return list(function(*map(torch.stack, lists)).unbind())",
        after="return list(function(*map(torch.stack, lists)).flip(0).unbind())",
        tests=("tests/kernel/test_ops.py::test_at_once_is_one_by_one",),
    ),
    Breakage(
        "adafactor-one-by-one",
        "Adafactor has launches for each tensor where one is enough.",
        ADAPTIVE + "src/projcore_adaptive/adafactor.py",
        before="    torch._foreach_rsqrt_(moments)\n",
        after="    [moment.rsqrt_() for moment in moments]\n",
        tests=(ADAPTIVE + "tests/test_accelerators.py::test_the_number_of_tensors_hardly_matters",),
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
        "muon-tall",
        "A tall matrix in a batch of wide ones comes back as if it were wide.",
        ADAPTIVE + "src/projcore_adaptive/orthogonalize.py",
        before="(part.mT if rows > columns else part).reshape(tensor.shape)",
        after="part.reshape(tensor.shape)",
        tests=(ADAPTIVE + "tests/test_muon.py::test_matrices_of_equal_shape_are_one_batch",),
    ),
    Breakage(
        "muon-one-by-one",
        "Matrices of equal shape are orthogonalized one by one on accelerators.",
        ADAPTIVE + "src/projcore_adaptive/orthogonalize.py",
        before="BATCH = 1 << 29",
        after="BATCH = 1",
        tests=(
            ADAPTIVE + "tests/test_muon.py"
            "::test_launches_on_an_accelerator_do_not_grow_with_the_number_of_matrices",
        ),
    ),
    Breakage(
        "adafactor-rows",
        "Adafactor's means of rows are not divided by their own mean.",
        ADAPTIVE + "src/projcore_adaptive/adafactor.py",
        before="torch._foreach_mul(torch._foreach_div(row_vars, means), col_vars)",
        after="torch._foreach_mul(row_vars, col_vars)",
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
        before="torch.where((above > 0) & (below > 0), above / below, 1.0)",
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
        "norm-one-kind",
        "Of parameters of several kinds, the norm is that of the first.",
        BASIC + "src/projcore_basic/_norms.py",
        before="    if len(parts) == 1:\n",
        after="    if parts:\n",
        tests=(BASIC + "tests/test_kinds.py::test_the_norm_of_all_is_that_of_one_vector",),
    ),
    Breakage(
        "clip-norm-waits",
        "Clipping reads the norm, for which the host waits on a GPU.",
        BASIC + "src/projcore_basic/clip_norm.py",
        before="norm = whole_norm(tensors, self.order)",
        after="norm = whole_norm(tensors, self.order).item() * torch.ones(())",
        tests=(LAUNCHES + "test_table.py::" + LAUNCHED + "[clip_norm; adam(); lr]",),
    ),
    Breakage(
        "clip-lengthens",
        "Clipping makes short updates longer.",
        BASIC + "src/projcore_basic/clip_norm.py",
        before='(common(self, settings)["max_norm"] / (norm + TINY)).clamp(max=1.0)',
        after='common(self, settings)["max_norm"] / (norm + TINY)',
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
        before="return min((result.seconds for result in self.finished), default=None)",
        after="return max((result.seconds for result in self.finished), default=None)",
        tests=(
            LAB + "tests/test_measures.py::test_results_are_compared_after_the_time_that_all_had",
        ),
    ),
    Breakage(
        "lab-validation",
        "The loss within a time is the first that was measured.",
        LAB + "src/projcore_lab/comparison.py",
        before="for c in reversed(self.checks) if c.seconds <= seconds",
        after="for c in self.checks if c.seconds <= seconds",
        tests=(LAB + "tests/test_measures.py::test_losses_by_time",),
    ),
    Breakage(
        "lab-tuning",
        "Tuning takes the learning rate of the highest loss.",
        LAB + "src/projcore_lab/tune.py",
        before="return min(trials, key=lambda trial: (_loss(trial), trial.lr))",
        after="return max(trials, key=lambda trial: (_loss(trial), trial.lr))",
        tests=(LAB + "tests/test_measures.py::test_rates_are_searched_around_the_best",),
    ),
    Breakage(
        "lab-target",
        "A mean at the target counts as below it, whatever the noise.",
        LAB + "src/projcore_lab/target.py",
        before="margin = self.constant / math.sqrt(len(result.runs))",
        after="margin = 0.0",
        tests=(
            LAB + "tests/test_measures.py"
            "::test_a_target_is_reached_when_the_mean_is_below_it_by_more_than_the_noise",
        ),
    ),
    Breakage(
        "lab-resume",
        "A comparison that goes on takes a run for that of another learning rate.",
        LAB + "src/projcore_lab/compare.py",
        before='"lr": learning_rate(contender.optimizer(task.model())),',
        after='"lr": 0.0,',
        tests=(LAB + "tests/test_compare.py::test_tune_finds_a_learning_rate_and_shows_it",),
    ),
    Breakage(
        "lab-overwriting",
        "Results that are there are overwritten.",
        LAB + "src/projcore_lab/compare.py",
        before="if there and not resume:",
        after="if False:",
        tests=(LAB + "tests/test_compare.py::test_results_are_not_overwritten",),
    ),
]

COUNTER = [
    Breakage(
        "counter-dtypes",
        "Lists of several dtypes are counted as if torch had a foreach kernel for them.",
        LAUNCHES + "counting.py",
        before="all(each == dtypes[0] for each in dtypes)",
        after="True",
        tests=(LAUNCHES + "test_counting.py::test_foreach",),
    ),
    Breakage(
        "counter-pinned",
        "A copy to ordinary memory is taken for one that nobody waits for.",
        LAUNCHES + "counting.py",
        before="blocking or not is_pinned(target)",
        after="blocking",
        tests=(LAUNCHES + "test_counting.py::test_copies",),
    ),
    Breakage(
        "counter-freed",
        "Memory that a step has given back is still counted.",
        LAUNCHES + "counting.py",
        before="self._live -= size",
        after="pass",
        tests=(LAUNCHES + "test_counting.py",),
    ),
]

BREAKAGES = [*KERNEL, *ENGINE_BREAKAGES, *HOST, *KIT, *PLUGINS, *COUNTER]
