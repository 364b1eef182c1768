"""The optical depths of LANES rays of one direction at a time, side by side in vector registers.

The march reads one cell at each step of a ray. Processors have an instruction that reads many
places of the memory at once (gather), but a compiler does not find it in this loop. So the loop
is written in the language of LLVM, which numba compiles; where a processor has no such
instruction, LLVM reads one place after the other. Everything else of the march is in
:mod:`anacor_dials.absorption.ray_tracing`.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

from anacor_dials.absorption.attenuating_volume import FIXED_POINT_BITS, LINE_EDGE, PAGE_EDGE

LANES = 16

INT, FLOAT, BIT = ir.IntType(32), ir.FloatType(), ir.IntType(1)
INTS, FLOATS = ir.VectorType(INT, LANES), ir.VectorType(FLOAT, LANES)


@intrinsic
def sum_along_rays(typingctx, grid, depths, steps, rays, most, totals):  # type: ignore[no-untyped-def]
    """Writes the sum of depths[code] over the cells at the steps of each ray to totals.

    Parameters
    ----------
    typingctx
        Given by numba.
    grid : tuple
        words (n,) of uint32 and pages (3,) of int32 of a
        :class:`anacor_dials.absorption.attenuating_volume.BlockedGrid`.
    depths : array (256,) of float32
        The optical depth of one step in a cell of each code.
    steps : array (3,) of int32
        The step along x, y and z, cells, with FIXED_POINT_BITS bits of fraction.
    rays : array (4, LANES) of int32
        x, y and z of the first step of each ray, likewise, and the number of its steps.
    most : int
        The largest number of steps.
    totals : array (LANES,) of float32
        Is overwritten.
    """
    return types.void(grid, depths, steps, rays, types.intp, totals), _sums


def _sums(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """Builds what :func:`sum_along_rays` does."""

    def data(kind: Any, value: Any) -> Any:
        return make_array(kind)(context, builder, value).data

    kinds, (grid, depths, steps, rays, most, totals) = signature.args, args
    words, pages = map(data, kinds[0], cgutils.unpack_tuple(builder, grid))
    depths, steps, rays = map(data, kinds[1:4], (depths, steps, rays))
    totals = data(kinds[5], totals)
    x, y, z, n_steps = (_load(builder, _at(builder, rays, row * LANES), INTS) for row in range(4))
    page = [_splat(builder, _element(builder, pages, axis)) for axis in range(3)]
    step = [_splat(builder, _element(builder, steps, axis)) for axis in range(3)]
    places = [cgutils.alloca_once_value(builder, place) for place in (x, y, z)]
    total = cgutils.alloca_once_value(builder, ir.Constant(FLOATS, None))
    with cgutils.for_range(builder, most) as loop:
        running = builder.icmp_signed("<", _splat(builder, builder.trunc(loop.index, INT)), n_steps)
        cell = _cell(builder, [builder.load(place) for place in places], page)
        word = _gather(builder, words, builder.lshr(cell, _ints(2)), running, INTS)
        shift = builder.shl(builder.and_(cell, _ints(3)), _ints(3))
        code = builder.and_(builder.lshr(word, shift), _ints(255))
        depth = _gather(builder, depths, code, running, FLOATS)
        builder.store(builder.fadd(builder.load(total), depth), total)
        for place, by in zip(places, step, strict=True):
            builder.store(builder.add(builder.load(place), by), place)
    to = builder.bitcast(totals, FLOATS.as_pointer())
    builder.store(builder.load(total), to, align=4)
    return context.get_dummy_value()


def _cell(builder: Any, places: list[Any], page: list[Any]) -> Any:
    """The index in a BlockedGrid of the cell at each place: its page, then its bits in the page."""
    edge_bits, line_bits = PAGE_EDGE.bit_length() - 1, LINE_EDGE.bit_length() - 1
    number = None
    within = None
    for axis, (place, stride) in enumerate(zip(places, page, strict=True)):
        index = builder.lshr(place, _ints(FIXED_POINT_BITS))
        pages = builder.mul(builder.lshr(index, _ints(edge_bits)), stride)
        number = pages if number is None else builder.add(number, pages)
        # index = line * LINE_EDGE + inner: lines after the LINE_EDGE**3 cells of one
        line = builder.and_(index, _ints(PAGE_EDGE - LINE_EDGE))
        line = builder.shl(line, _ints(2 * line_bits + (2 - axis) * (edge_bits - line_bits)))
        inner = builder.and_(index, _ints(LINE_EDGE - 1))
        inner = builder.shl(inner, _ints((2 - axis) * line_bits))
        bits = builder.or_(line, inner)
        within = bits if within is None else builder.or_(within, bits)
    return builder.or_(builder.shl(number, _ints(3 * edge_bits)), within)


def _gather(builder: Any, base: Any, index: Any, wanted: Any, kind: Any) -> Any:
    """The elements of an array at an index for each lane; 0 where it is not wanted."""
    pointers = ir.VectorType(base.type, LANES)
    places = builder.gep(base, [index], source_etype=kind.element)
    places.type = pointers  # the type of a vector of places, which llvmlite does not infer
    name = f"llvm.masked.gather.v{LANES}{'i32' if kind is INTS else 'f32'}.v{LANES}p0"
    function = ir.FunctionType(kind, [pointers, INT, ir.VectorType(BIT, LANES), kind])
    gather = cgutils.get_or_insert_function(builder.module, function, name)
    return builder.call(gather, [places, ir.Constant(INT, 4), wanted, ir.Constant(kind, None)])


def _ints(value: int) -> Any:
    return ir.Constant(INTS, [value] * LANES)


def _at(builder: Any, base: Any, index: int) -> Any:
    return builder.gep(base, [ir.Constant(INT, index)], source_etype=INT)


def _element(builder: Any, base: Any, index: int) -> Any:
    return builder.load(_at(builder, base, index), typ=INT)


def _load(builder: Any, base: Any, kind: Any) -> Any:
    return builder.load(builder.bitcast(base, kind.as_pointer()), align=4, typ=kind)


def _splat(builder: Any, value: Any) -> Any:
    undefined = ir.Constant(INTS, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(INT, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(INTS, [0] * LANES))
