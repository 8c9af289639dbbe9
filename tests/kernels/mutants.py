"""Deliberate mistakes in the Triton kernels, by name: those of rollouts and of single steps."""

from tests.mutation import Mutant

MUTANTS = {
    "mask dropped forward": Mutant(
        "network.py",
        "E5",
        "$updated = tl.where(has($status, UPDATE), $updated, $state)",
        "$updated = $updated + 0.0",
    ),
    "mask dropped backward": Mutant(
        "step_backward.py",
        "E9",
        "$grad_delta = tl.where(has($status, UPDATE), $grad, 0.0)",
        "$grad_delta = $grad",
    ),
    "seed used again every step": Mutant(
        "step_forward.py",
        "E4",
        "$number = tl.load($counter + 1) + $step",
        "$number = tl.load($counter + 1) + $step * 0",
    ),
    "words of a quad swapped": Mutant(
        "mask.py", "E4", "tl.where($number == 0,", "tl.where($number == 1,", "draw_update"
    ),
    "filters swapped": Mutant(
        "perceive.py",
        "E1",
        "tl.join($first, $third), tl.join($second, $fourth)",
        "tl.join($first, $second), tl.join($third, $fourth)",
        "perceive",
    ),
    "halo shifted": Mutant(
        "perceive.py",
        "E1",
        "load_neighbour($above + $right, $status, 2, $masked)",
        "load_neighbour($above, $status, 1, $masked)",
        "perceive",
    ),
    "transposed filters not negated": Mutant(
        "planes.py",
        "E12",
        "_split($second - $first)",
        "_split($first - $second)",
        "_combine",
    ),
    "threshold not strict": Mutant(
        "step_forward.py",
        "E5",
        "tl.where($updated > $threshold",
        "tl.where($updated >= $threshold",
        "find_flags",
    ),
    "cells born that were dead before": Mutant(
        "step_forward.py",
        "E6",
        "$stored = tl.where($alive, $updated, $updated * 0.0)",
        "$stored = $updated",
    ),
    "post-update test dropped": Mutant(
        "end.py",
        "E7",
        "$alive &= (survivors($$flags) != 0)[:, None]",
        "$alive &= $alive",
    ),
    "dead neighbours ignored": Mutant(
        "step_forward.py",
        "E7",
        "tl.where($updated > $threshold, ($inside | $kept)[:, None], 0)",
        "tl.where($updated > $threshold, ($kept | $kept >> PRE)[:, None], 0)",
        "find_flags",
    ),
    "flags not told to the tile on the left": Mutant(
        "flags.py", "E7", "mask=$column > 0", "mask=$column < 0", "store_flags"
    ),
    "tiles skipped too eagerly": Mutant("flags.py", "", "0x3FFC0", "0x0FF00"),
    "dead tiles left alone": Mutant(
        "step_forward.py",
        "E6",
        "tl.store($$place, $stored, mask=$inside[:, None])"
        " if RULE.alive: $word = $$offset store_flags($$where, $found, HEIGHT)",
        "tl.store($$place, $stored,"
        " mask=($inside.to(tl.int32) * tl.max($found, axis=0) != 0)[:, None])\n"
        "if RULE.alive:\n    $word = $$offset\n    store_flags($$where, $found, HEIGHT)",
    ),
    "flags of dead tiles wrong": Mutant(
        "step_forward.py",
        "E5",
        "$found = tl.zeros((HEIGHT,), tl.int32)",
        "$found = tl.full((HEIGHT,), -1, tl.int32)",
    ),
    "gradients of dead tiles wrong": Mutant(
        "step_backward.py",
        "E8",
        "$direct = tl.zeros(($cells, CHANNELS), tl.float32)"
        " $plane = tl.zeros(($cells, 2 * CHANNELS), $dtype)",
        "$direct = tl.full(($cells, CHANNELS), 1.0, tl.float32)\n"
        "$plane = tl.zeros(($cells, 2 * CHANNELS), $dtype)",
    ),
    "gradient through cells that died": Mutant(
        "step_backward.py", "E8", "(($post ^ 1) << PRE)", "(($post & 0) << PRE)"
    ),
    "rectifier not differentiated": Mutant(
        "network.py", "E10", "tl.where($hidden <= 0, 0.0, $grad)", "$grad", "differentiate_network"
    ),
    "bias gradient lost": Mutant(
        "gradients.py",
        "E9",
        "tl.sum($grad, axis=0), $later",
        "tl.sum($grad, axis=0) * 0, $later",
        "store_sums",
    ),
    "bias gradient of the first layer lost": Mutant(
        "gradients.py",
        "E10",
        "$constant = $$known & ($channel == 0) _store($grad + $unit, $total, $constant,",
        "$constant = $$known & ($channel == 0)\n_store($grad + $unit, $total * 0, $constant,",
        "unpack_gradients",
    ),
    "eighth lost": Mutant(
        "gradients.py",
        "E10",
        "filter_weight($total, $feature, RULE)",
        "$total",
        "unpack_gradients",
    ),
    "eighth lost forward": Mutant(
        "weights.py",
        "E1",
        "filter_weight(tl.load($$place), $feature, RULE)",
        "tl.load($$place)",
        "first_layer",
    ),
    "sums of later steps lost": Mutant(
        "step_backward.py",
        "E9",
        "$later = $step + 1 < tl.load($counter + 2)",
        "$later = $step < 0",
    ),
    "rows of other programs lost": Mutant(
        "gradients.py", "E9", "($row < $rows)[:, None]", "($row < 1)[:, None]", "add_rows"
    ),
    "all launches taken": Mutant(
        "step_forward.py", "", "if $step >= tl.load($counter + 2):", "if $step < 0:"
    ),
    "one step too many backward": Mutant(
        "step_backward.py",
        "",
        "if $step >= tl.load($counter + 2):",
        "if $step > tl.load($counter + 2):",
    ),
    "infinity cleared with its cell": Mutant(
        "step_forward.py",
        "E6",
        "tl.where($alive, $updated, $updated * 0.0)",
        "tl.where($alive, $updated, 0.0)",
    ),
    "infinity not alive": Mutant(
        "step_forward.py",
        "E5",
        "tl.where(is_finite($updated), $flags",
        'tl.where($updated < float("inf"), $flags',
        "find_flags",
    ),
    "infinity not alive at the start": Mutant(
        "begin.py",
        "E2",
        "$kept = $alpha & (($state <= $threshold) == 0)",
        "$kept = $alpha & ($state > $threshold)",
    ),
    "infinity of other channels not seen": Mutant(
        "flags.py", "E5", "$packed, ALL_FLAGS)", "$packed, $packed)", "flag_rows_not_finite"
    ),
    "last slot that of all launches": Mutant("end.py", "", "steps_taken($counter, $most)", "$most"),
    "half of the gradient swapped": Mutant(
        "begin.py",
        "",
        "$half = steps_taken($counter, $most) % 2",
        "$half = 1 - steps_taken($counter, $most) % 2",
    ),
}

SINGLE_MUTANTS = {
    "mask dropped forward": Mutant(
        "network.py",
        "E5",
        "$updated = tl.where(has($status, UPDATE), $updated, $state)",
        "$updated = $updated + 0.0",
    ),
    "step number ignored": Mutant(
        "single_step.py",
        "E4",
        "$seed, $step = $seed + $nothing, $step + $nothing",
        "$seed, $step = $seed + $nothing, $nothing",
    ),
    "threshold not strict before": Mutant(
        "single_step.py", "E2", "is_visible($alpha, $threshold)", "$alpha >= $threshold"
    ),
    "threshold not strict after": Mutant(
        "single_step.py", "E5", "($updated <= $threshold)", "($updated < $threshold)"
    ),
    "cells born that were dead before": Mutant(
        "single_step.py",
        "E6",
        "dilate_bits($words, $cells) & ($status >> PRE) & 1",
        "dilate_bits($words, $cells) & 1",
    ),
    "post-update test dropped": Mutant(
        "single_step.py",
        "E7",
        "dilate_bits($words, $cells) & ($status >> PRE) & 1",
        "($status >> PRE) & 1",
    ),
    "dead neighbours ignored": Mutant(
        "single_step.py", "E7", "$visible & has($status, HERE)", "$visible & has($status, PRE)"
    ),
    "cells outside of the grid alive": Mutant(
        "single_step.py", "E7", "$visible & has($status, HERE)", "$visible & ($status > -1)"
    ),
    "padding perceived on the left": Mutant(
        "tile.py",
        "E1",
        "tl.where(_lies_below($x - 1, $width), 1, 0) | tl.where(_lies_below($x, $width), 2, 0)",
        "tl.where(_lies_below($x, $width), 1, 0) | tl.where(_lies_below($x, $width), 2, 0)",
    ),
    "padding perceived on the right": Mutant(
        "tile.py",
        "E1",
        "tl.where(_lies_below($x + 1, $width), 4, 0)",
        "tl.where(_lies_below($x, $width), 4, 0)",
    ),
    "padding perceived above": Mutant(
        "tile.py",
        "E1",
        "tl.where(_lies_below($y - 1, $height), 1, 0) | tl.where(_lies_below($y, $height), 8, 0)",
        "tl.where(_lies_below($y, $height), 1, 0) | tl.where(_lies_below($y, $height), 8, 0)",
    ),
    "padding perceived below": Mutant(
        "tile.py",
        "E1",
        "tl.where(_lies_below($y + 1, $height), 64, 0)",
        "tl.where(_lies_below($y, $height), 64, 0)",
    ),
    "ring stored": Mutant("single_step.py", "E7", "| ($column == 0) |", "|"),
    "ring too wide": Mutant(
        "single_step.py", "", "($column == COLUMNS - 1)", "($column >= COLUMNS - 2)"
    ),
    "dead tiles left alone": Mutant(
        "single_step.py",
        "E6",
        "tl.store($$place, $result, mask=$mask)"
        " if KEEP: tl.store($$byte, $flags.to($$type), mask=$stored)",
        "tl.store($$place, $result, mask=$mask & ($flags + tl.max($flags, axis=0) > 0)[:, None])\n"
        "if KEEP:\n    tl.store($$byte, $flags.to($$type), mask=$stored)",
    ),
    "flags of dead tiles wrong": Mutant(
        "single_step.py",
        "E8",
        "$flags = tl.zeros(($cells,), tl.int32)",
        "$flags = tl.full(($cells,), 1, tl.int32)",
    ),
    "infinity not alive before": Mutant(
        "single_step.py", "E2", "is_visible($alpha, $threshold)", "$alpha > $threshold"
    ),
    "infinity cleared with its cell": Mutant(
        "single_step.py",
        "E7",
        "$result = $updated * $alive[:, None]",
        "$result = tl.where($alive[:, None] == 0, 0.0, $updated)",
    ),
    "flag of the mask lost": Mutant("single_step.py", "E9", "& 1) << UPDATED", "& 1) << 3"),
    "words torn apart": Mutant("bits.py", "E2", "| ($before >> (32 - COLUMNS))", "", "dilate_bits"),
    "words in a wrong order": Mutant(
        "bits.py", "E2", "$word + ($count - 1)", "$word + ($count - 2)", "dilate_bits"
    ),
    "bits not spread to the left": Mutant(
        "bits.py", "E2", "($rows << 1) | ($rows >> 1)", "$rows << 1", "dilate_bits"
    ),
    "gradient through cells that died": Mutant(
        "single_gradient.py",
        "E8",
        "$status = of_channels(neighbours_inside($$cell), $$sizes) $$$between"
        " tl.load($$place, mask=has($flags, ALIVE_AFTER), other=0.0)",
        "$status = of_channels(neighbours_inside($$cell), $$sizes)\n$$$between"
        " tl.load($$place, mask=has($status, 4), other=0.0)",
    ),
    "mask dropped backward": Mutant(
        "single_gradient.py",
        "E9",
        "$delta = tl.where($updating, $grad, 0.0) $sums =",
        "$delta = $grad\n$sums =",
    ),
    "mask dropped from the bias": Mutant(
        "single_gradient.py",
        "E9",
        "$unscaled = tl.where($updating, $grad, 0.0) $bias += tl.sum(",
        "$unscaled = $grad\n$bias += tl.sum(",
    ),
    "sums not brought down": Mutant(
        "single_gradient.py",
        "",
        "$change = power_of_two($exponent - $before + 127) $grad1 *= $change $grad2 *= $change",
        "$change = power_of_two($exponent - $before + 127)\n$grad1 *= $change\n$grad2 *= 1.0",
    ),
    "scale left in the sums": Mutant(
        "single_gradient.py",
        "",
        "$inverse = power_of_two(2 * 127 - $exponent) $grad1 *= $inverse",
        "$inverse = power_of_two(2 * 127 - $exponent)\n$grad1 *= 1.0",
    ),
    "scale left in the state": Mutant(
        "single_gradient.py", "", "add_centers($$a) * $unscale", "add_centers($$a)"
    ),
    "Sobel gradients swapped": Mutant(
        "single_gradient.py",
        "E11",
        "tl.store($scratch + $corner + $offsets, $x, mask=$mask)"
        " tl.store($scratch + $numbers + $corner + $offsets, $y,",
        "tl.store($scratch + $corner + $offsets, $y, mask=$mask)\n"
        "tl.store($scratch + $numbers + $corner + $offsets, $y,",
    ),
    "nothing gathered": Mutant(
        "single_gradient_end.py",
        "E12",
        "other=0.0) + $received + $poison",
        "other=0.0) + $poison",
    ),
    "gather shifted": Mutant(
        "planes.py",
        "E12",
        "(below + right, above - left)",
        "(below + right, above)",
        "_neighbours",
    ),
    "gather not negated": Mutant(
        "planes.py",
        "E12",
        "($b - $a, $d - $c)",
        "($a - $b, $c - $d)",
        "_combine_apart",
    ),
    "gradients of dead tiles left alone": Mutant(
        "single_gradient.py",
        "E8",
        "if tl.max(($flags >> ALIVE_AFTER) & 1, axis=0) != 0: $$$body"
        " tl.store($$place, $direct, mask=$mask) tl.store(",
        "if tl.max(($flags >> ALIVE_AFTER) & 1, axis=0) != 0:\n    $$$body\n"
        "tl.store($$place, $direct, mask=$mask & ($flags + tl.max($flags, axis=0) > 0)[:, None])\n"
        "tl.store(",
    ),
    "overflow of weights not noted": Mutant(
        "single_gradient.py",
        "",
        "$wrong = find_overflow($$weights) tl.store($notes + $program, $wrong.to(tl.float32))",
        "$wrong = find_overflow($$weights)\ntl.store($notes + $program, 0.0)",
    ),
    "notes not read": Mutant(
        "single_gradient_end.py", "", 'tl.where($wrong, float("nan"), 0.0)', "0.0"
    ),
    "bias of the second layer not read": Mutant(
        "weights.py",
        "E3",
        "mask=$channel < $channels, other=0.0)",
        "mask=$channel < 0, other=0.0)",
        "load_parameters",
    ),
    "eighth lost": Mutant(
        "weights.py",
        "E1",
        "filter_weight(tl.load($$place), $feature, RULE)",
        "tl.load($$place)",
        "first_layer",
    ),
}
