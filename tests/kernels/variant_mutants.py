"""Deliberate mistakes in what the Triton kernels compute for rules that are not the tutorial's."""

from tests.mutation import Mutant

VARIANT_MUTANTS = {
    # the torus, cell by cell
    "wraps to the wrong row above": Mutant(
        "tile.py",
        "E1",
        "tl.where($y > 0, $pitch, (1 - $height) * $pitch)",
        "tl.where($y > 0, $pitch, (2 - $height) * $pitch)",
    ),
    "wraps to the wrong row below": Mutant(
        "tile.py",
        "E1",
        "tl.where($y < $height - 1, $pitch, (1 - $height) * $pitch)",
        "tl.where($y < $height - 1, $pitch, (2 - $height) * $pitch)",
    ),
    "wraps to the wrong column on the left": Mutant(
        "tile.py",
        "E1",
        "tl.where($x > 0, 1, 1 - $width)",
        "tl.where($x > 0, 1, 2 - $width)",
    ),
    "wraps to the wrong column on the right": Mutant(
        "tile.py",
        "E1",
        "tl.where($x < $width - 1, 1, 1 - $width)",
        "tl.where($x < $width - 1, 1, 2 - $width)",
    ),
    "cells beyond a torus keep their place forward": Mutant(
        "step_forward.py", "E1", "$local = tl.where($inside, $local, 0)", "$local = $local + 0"
    ),
    "cells beyond a torus keep their place backward": Mutant(
        "step_backward.py",
        "E10",
        "local = tl.where($inside, $row * $width + $column, 0)",
        "local = $row * $width + $column",
    ),
    # the torus, flags
    "flags wrap to the wrong columns on the right": Mutant(
        "flags.py",
        "E7",
        "<< tl.minimum($rest + OWN, 24)",
        "<< tl.minimum($rest + OWN + 1, 24)",
        "_wrap",
    ),
    "flags wrap to the wrong columns on the left": Mutant(
        "flags.py", "E7", "& 3) << (OWN - 2)", "& 3) << (OWN - 1)", "_wrap"
    ),
    "one column of flags wraps on the right": Mutant(
        "flags.py", "E2", "(($first >> OWN) & 3)", "(($first >> OWN) & 1)", "_wrap"
    ),
    "one column of flags wraps on the left": Mutant(
        "flags.py", "E2", "& 3) << (OWN - 2)", "& 2) << (OWN - 2)", "_wrap"
    ),
    "flags of a narrow last tile are taken for a whole one's": Mutant(
        "flags.py",
        "E7",
        "$rest = ($width - 1) % COLUMNS + 1",
        "$rest = ($width - $width) + COLUMNS",
        "_wrap",
    ),
    "flags wrap to the wrong row above": Mutant(
        "alive.py",
        "E7",
        "tl.where($y > 0, $y, $height) - 1",
        "tl.where($y > 0, $y, $height - 1) - 1",
        "_row_above",
    ),
    "flags wrap to the wrong row below": Mutant(
        "alive.py",
        "E7",
        "tl.where($y + 1 < $height, $y + 1, 0)",
        "tl.where($y + 1 < $height, $y + 1, 1)",
        "_row_below",
    ),
    "tiles are skipped as if no row wrapped": Mutant(
        "alive.py",
        "",
        "($tile_row * HEIGHT + $row - MARGIN + $height) % $height",
        "tl.minimum(tl.maximum($tile_row * HEIGHT + $row - MARGIN, 0), $height - 1)",
        "may_live",
    ),
    # filters and their transpose
    "odd part of a filter negated": Mutant(
        "rule.py", "E1", "($flat[$a] - $flat[$b]) / 2", "($flat[$b] - $flat[$a]) / 2"
    ),
    "even part of a filter negated": Mutant(
        "rule.py", "E1", "($flat[$a] + $flat[$b]) / 2", "-($flat[$a] + $flat[$b]) / 2"
    ),
    "center of a filter lost": Mutant(
        "rule.py", "E1", "$scale, $flat[4],", "$scale, 1.0 if $flat[4] else 0.0,"
    ),
    "fourth feature taken for the constant": Mutant(
        "perceive.py",
        "E3",
        "len(RULE.filters) > NUMBER",
        "len(RULE.filters) > NUMBER and NUMBER < 3",
        "_feature",
    ),
    "neighbours beyond the border perceived": Mutant(
        "rule.py", "E1", "return self.alive or not self.circular", "return self.alive", "masked"
    ),
    "transpose of odd filters not negated": Mutant(
        "rule.py",
        "E12",
        "getattr($each, $part)[$pair]",
        "getattr($each, $part)[$pair] * (-1 if $part == 'odd' else 1)",
    ),
    "transpose of even filters negated": Mutant(
        "rule.py",
        "E12",
        "getattr($each, $part)[$pair]",
        "getattr($each, $part)[$pair] * (-1 if $part == 'even' else 1)",
    ),
    "mixed plane gathered as an odd one": Mutant(
        "rule.py",
        "E12",
        "for $term in $found if $term[3]",
        "for $term in $found if $term[3] and not ($term[1] and self.mixed)",
    ),
    "last pair of neighbours not gathered": Mutant(
        "rule.py", "E12", "for $pair in range(len(PAIRS))", "for $pair in range(len(PAIRS) - 1)"
    ),
    "transposed centers of later filters lost": Mutant(
        "perceive.py", "E12", "$number < len(RULE.filters)", "$number < 1", "add_centers"
    ),
    "second filter of a plane not stored": Mutant(
        "planes.py",
        "E12",
        "len(RULE.planes[PLANE].filters) == 1",
        "len(RULE.planes[PLANE].filters) >= 1",
        "join_plane",
    ),
    "second filter of a plane not gathered": Mutant(
        "rule.py", "E12", "enumerate($self.filters)", "enumerate($self.filters[:1])", "terms"
    ),
    "second plane gathered from the first": Mutant(
        "planes.py",
        "E12",
        "_tile($planes, $area, PLANE)",
        "_tile($planes, $area, 0)",
        "_gather",
    ),
    "second plane holds the first one's filters": Mutant(
        "step_backward.py",
        "E12",
        "join_plane($grads, RULE, 1, $dtype)",
        "join_plane($grads, RULE, 0, $dtype)",
    ),
    "halves of the planes overlap": Mutant(
        "step_backward.py",
        "E12",
        "(len(RULE.planes) * 2 * CHANNELS)",
        "(2 * CHANNELS)",
    ),
    # weights
    "scales of filters lost": Mutant(
        "weights.py",
        "E1",
        "filter_weight(tl.load($$place), $feature, RULE)",
        "tl.load($$place)",
        "first_layer",
    ),
    "scales of filters lost in their gradients": Mutant(
        "gradients.py", "E10", "filter_weight($total, $feature, RULE)", "$total", "unpack_gradients"
    ),
    "scale of the last filter lost": Mutant(
        "weights.py", "E1", "$number < len(RULE.filters) and", "$number < len(RULE.filters) - 1 and"
    ),
    "gradient of the fourth filter's weights lost": Mutant(
        "gradients.py", "E10", "$known & (feature < count)", "$known & (feature < 3)"
    ),
    "first bias added twice": Mutant(
        "network.py", "E3", "hidden += $bias[None, :]", "hidden += 2 * $bias[None, :]"
    ),
    "first bias not added backward": Mutant(
        "network.py", "E10", "+= $bias[:, None]", "+= 0 * $bias[:, None]", "differentiate_network"
    ),
    "gradient of the first bias not summed": Mutant(
        "network.py", "E10", "tl.dot($grad, ones, $sum,", "tl.dot($grad, 0 * ones, $sum,"
    ),
    "gradient of the first bias lost": Mutant(
        "gradients.py", "E10", "tl.max($grad, axis=1), $later", "tl.max($grad, axis=1) * 0, $later"
    ),
    "second bias added where there is none": Mutant(
        "network.py", "E3", "if RULE.final_bias:", "if True:", "apply_network"
    ),
    # input channels
    "input channels updated": Mutant(
        "status.py",
        "E5",
        "$of_input = $status & ~TAKES_PART",
        "$of_input = $status",
        "with_inputs",
    ),
    "input channels updated under an alive test": Mutant(
        "status.py",
        "E5",
        "(($neighbours >> HERE) & 1) << PRE)",
        "(($neighbours >> HERE) & 1) << PRE) | (status & TAKES_PART)",
        "with_inputs",
    ),
    "inputs of dead cells cleared": Mutant(
        "status.py",
        "E6",
        "$neighbours | ((($neighbours >> HERE) & 1) << PRE)",
        "$neighbours | (status & 512)",
        "with_inputs",
    ),
    "inputs of cells that died cleared": Mutant(
        "end.py",
        "E7",
        "$alive |= $inside[:, None] & ($channel >= RULE.first_input)[None, :]",
        "$alive |= $inside[:, None] & ($channel < 0)[None, :]",
    ),
    "inputs not copied through tiles that are skipped": Mutant(
        "step_forward.py",
        "E5",
        "mask=$inside & $is_input, other=0.0)",
        "mask=$inside & $is_input, other=0.0) * 0.0",
    ),
    "dead inputs not perceived": Mutant(
        "status.py",
        "E1",
        "$neighbours = ($status >> GRID) & 511",
        "$neighbours = $status & 511 | (($status >> GRID) & 16)",
        "with_inputs",
    ),
    "gradients of inputs lost where nothing lives": Mutant(
        "step_backward.py", "E12", "RULE.first_input == 0", "RULE.first_input >= 0"
    ),
    "gradients of inputs masked by the alive test": Mutant(
        "step_backward.py",
        "E12",
        "$statuses = with_inputs($$own, RULE) $alive = has($statuses, PRE)",
        "$statuses = with_inputs($$own, RULE)\n$alive = has($$own, PRE)",
    ),
    "gradients of inputs fed to the network": Mutant(
        "step_backward.py",
        "E9",
        "tl.where(has($statuses, UPDATE), $grad, 0.0)",
        "tl.where(has(of_channels(status, CHANNELS, CHANNELS), UPDATE), $grad, 0.0)",
    ),
    "nobody updates where nobody asks for a mask": Mutant(
        "mask.py",
        "E4",
        "tl.full($cell.shape, TAKES_PART, tl.int32)",
        "tl.full($cell.shape, 0, tl.int32)",
        "draw_status",
    ),
    # no alive test
    "alive test at the end of a rule without one": Mutant(
        "end.py", "E7", "if RULE.alive:", "if True:"
    ),
    "flags read before the steps of a rule without an alive test": Mutant(
        "alive.py", "E2", "if RULE.alive:", "if True:", "look_around"
    ),
    "tiles skipped by a rule without an alive test": Mutant(
        "alive.py", "", "if RULE.alive:", "if True:", "may_live"
    ),
    "dead cells cleared by a rule without an alive test": Mutant(
        "step_forward.py",
        "E6",
        "$stored = $updated if RULE.alive:",
        "$stored = $updated\nif not RULE.alive:\n"
        "    $stored = tl.where($updated > threshold, $updated, 0.0)\nif RULE.alive:",
    ),
    "survivors told by a rule without an alive test": Mutant(
        "step_backward.py",
        "E8",
        "if RULE.alive: $post = survivors(",
        "if True:\n    $post = survivors(",
    ),
}
