"""The C of one push: emx-onnx-cgen turns the ONNX of one stream into loops, and here they get their memory.

Temporaries share a scratch that lies in the struct of a stream: nothing is allocated, stacks stay small, and
streams are independent. A temporary that only has another shape is the same memory.
"""

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from lrnnx_app.errors import LrnnxError, UserError, needs
from lrnnx_app.export import onnx
from lrnnx_app.export._chunk import Chunk, traced

COPIES = ("Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten")
LINE = 16  # numbers; each temporary begins at a multiple of it, which is good for vectors
BYTES = {"float": 4, "double": 8, "int64_t": 8, "int32_t": 4, "int8_t": 1, "uint8_t": 1, "bool": 1}
# The generator's product has its sum innermost, of which compilers make no vectors without -ffast-math.
MATMUL = """EMX_NODE_FN void {{ op_name }}({{ dim_args }}{{ params | join(', ') }}) {
{% for var in output_loop_vars[:-1] %}
    for (idx_t {{ var }} = 0; {{ var }} < {{ output_loop_bounds[loop.index0] }}; ++{{ var }}) {
{% endfor %}
{% set var, bound = output_loop_vars[-1], output_loop_bounds[-1] %}
    {{ acc_type }} acc[{{ bound }}] = { {{ zero_literal }} };
    for (idx_t k = 0; k < {{ k }}; ++k)
        for (idx_t {{ var }} = 0; {{ var }} < {{ bound }}; ++{{ var }})
            acc[{{ var }}] += {{ input0_index_expr }} * {{ input1_index_expr }};
    for (idx_t {{ var }} = 0; {{ var }} < {{ bound }}; ++{{ var }})
        {{ output_index_expr }} = acc[{{ var }}];
{% for _ in output_loop_vars[:-1] %}
    }
{% endfor %}
}
"""


class Array(NamedTuple):
    """An array of C."""

    kind: str
    name: str
    shape: tuple[int, ...]

    @property
    def inner(self) -> str:
        """Its dimensions but the first, as in a pointer to its rows."""
        return "".join(f"[{n}]" for n in self.shape[1:])

    def cast(self, word: str) -> str:
        """The memory at a pointer as this array."""
        return f"({self.kind} (*){self.inner}){word}"

    def pointer(self, source: str, const: bool = False) -> str:
        """A declaration that makes its name a pointer to the memory at `source`."""
        kind = f"const {self.kind}" if const else self.kind
        return f"    {kind} (*{self.name}){self.inner} = ({kind} (*){self.inner})({source});"


@dataclass
class Program:
    """The text of a file of C; what its state, scratch and constants are; multiply-adds of a push."""

    text: str
    x: Array
    y: Array
    states: list[Array]
    scratch: list[Array]
    weights: list[Array]
    products: int


def size(arrays: Sequence[Array]) -> int:
    """Bytes."""
    return sum(BYTES[array.kind] * prod(array.shape) for array in arrays)


def identifier(path: Path) -> str:
    """What the names in C begin with."""
    name = re.sub(r"\W", "_", path.stem, flags=re.ASCII)
    return f"m{name}" if name[:1].isdigit() else name


def program(path: Path, chunk: Chunk, int8: bool) -> Program:
    """The C of a chunk.

    Raises:
        UserError: emx-onnx-cgen is not installed, or does not know something of this model.
    """
    try:
        import onnxscript  # noqa: F401  (used by torch.onnx)
        from emx_onnx_cgen import compiler, errors
    except ImportError as error:
        raise needs("c", error) from error
    model = onnx.to_onnx(chunk, traced(chunk, 1))
    del model.metadata_props[:]
    onnx.by_rows(model)
    if int8:
        onnx.weights_in_8_bits(model)
    name = identifier(path)
    with tempfile.TemporaryDirectory() as folder:
        for file in (Path(compiler.__file__).parent / "templates").iterdir():
            (Path(folder) / file.name).symlink_to(file)
        (Path(folder) / "matmul_op.c.j2").unlink()
        (Path(folder) / "matmul_op.c.j2").write_text(MATMUL)
        options = compiler.CompilerOptions(
            template_dir=Path(folder),
            model_name=f"{name}_hop",
            large_temp_threshold_bytes=0,  # nothing on the heap
            large_weight_threshold=0,  # nothing in another file
        )
        try:
            text = compiler.Compiler(options).compile(model)
        except errors.CompilerError as error:
            raise UserError(f"{path}: there is no C for this model: {str(error).splitlines()[0]}") from error
    return _with_memory(text, path, chunk, _products(model))


def _products(model: Any) -> int:
    """Multiply-adds of one push: of products of matrices, and of numbers."""
    import onnx as library

    graph = library.shape_inference.infer_shapes(model).graph
    shapes = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.input, *graph.output)
    }
    shapes |= {initial.name: list(initial.dims) for initial in graph.initializer}
    sums = {"MatMul": lambda node: shapes[node.input[0]][-1], "Mul": lambda _: 1}
    return sum(
        prod(shapes[node.output[0]]) * sums[node.op_type](node) for node in graph.node if node.op_type in sums
    )


def _with_memory(text: str, path: Path, chunk: Chunk, products: int) -> Program:
    """The generated text, with temporaries that lie in a scratch.

    Raises:
        LrnnxError: the text has another form than it had when this was written.
    """
    name = identifier(path)
    text = text.replace("static inline", "EMX_UNUSED static inline")
    text = re.sub(r"\nextern const .*;", "", text)
    text = text.replace("\nconst EMX_UNUSED ", "\nstatic const EMX_UNUSED ")
    text, _, entry = text.partition(f"\nvoid {name}_hop(")
    signature, _, body = entry.rstrip("}\n").partition(") {\n")
    lines = body.splitlines()
    arrays = [line for line in lines if re.fullmatch(r"    \w+ \w+(\[\d+\])+;", line)]
    calls = [(m[1], m[2].split(", ")) for line in lines if (m := re.fullmatch(r"    (\w+)\((.*)\);", line))]
    if not calls or len(calls) + len(arrays) != len(lines):
        raise LrnnxError("emx-onnx-cgen has written C of another form; lrnnx knows that of version 1.4")
    given = [_array(word) for word in signature.split(", ")]
    first, *parts = re.split(r"(?=/\*\n \* Node \d+:\n)", text)
    parts = {re.findall(r"EMX_NODE_FN void (\w+)", part)[0]: part for part in parts}
    kinds, roots, kept = {array.name: array for array in map(_array, arrays)}, {}, []
    wide: dict[str, str] = {}
    for function, words in calls:
        copies = re.findall(r"OpType: (\w+)", parts[function])[0] in COPIES and len(words) == 2
        if copies and words[1] in kinds:
            roots[words[1]] = roots.get(words[0], words[0])
            del parts[function]
        elif "const int8_t input0[" in parts[function]:  # a product converts its numbers on its way
            wide[words[1]] = words[0]
            del parts[function]
        else:
            for place, narrow in enumerate(wide.get(word) for word in words):
                if narrow:
                    parts[function] = parts[function].replace(
                        f"const float input{place}[", f"const int8_t input{place}["
                    )
                    words[place] = narrow
            kept.append((function, words))
    places, scratch = _places(kinds, roots, [words for _, words in kept])
    used = {word for _, words in kept for word in words}
    body = [
        *(
            kinds[word].pointer(f"stream->scratch_{kinds[word].kind} + {place}")
            for word, place in places.items()
        ),
        *(kinds[word].pointer(root, root not in kinds) for word, root in roots.items() if word in used),
        *(f"    (void){array.name};" for array in given if array.name not in used | set(roots.values())),
        *(f"    {function}({', '.join(words)});" for function, words in kept),
    ]
    head = f"static void {name}_hop({name}_stream *stream, {signature}) {{"
    return Program(
        "\n".join((f'#include "{path.stem}.h"\n', first + "".join(parts.values()), head, *body, "}\n")),
        given[0],
        given[len(chunk.inputs())],
        given[1 + chunk.timed : len(chunk.inputs())],
        scratch,
        [_array(line) for line in re.findall(r"\nstatic const EMX_UNUSED (.*) = {", first)],
        products,
    )


def _places(
    kinds: dict[str, Array], roots: dict[str, str], calls: list[list[str]]
) -> tuple[dict[str, int], list[Array]]:
    """Where each temporary begins in the scratch of its kind, and the scratches. Large ones choose first."""
    spans: dict[str, list[int]] = {}
    for now, words in enumerate(calls):
        for root in {roots.get(word, word) for word in words} & kinds.keys():
            spans.setdefault(root, [now, now])[1] = now
    places: dict[str, int] = {}
    ends: dict[str, int] = {}
    for word in sorted(spans, key=lambda word: -prod(kinds[word].shape)):
        kind, place = kinds[word].kind, 0
        room = -(-prod(kinds[word].shape) // LINE) * LINE
        others = (other for other in places if kinds[other].kind == kind)
        for other in sorted(
            (other for other in others if _meet(spans[word], spans[other])), key=places.__getitem__
        ):
            if place + room <= places[other]:
                break
            place = max(place, places[other] + -(-prod(kinds[other].shape) // LINE) * LINE)
        places[word] = place
        ends[kind] = max(ends.get(kind, 0), place + room)
    return places, [Array(kind, f"scratch_{kind}", (end,)) for kind, end in ends.items()]


def _meet(one: list[int], other: list[int]) -> bool:
    return one[0] <= other[1] and other[0] <= one[1]


def _array(declaration: str) -> Array:
    kind, name = re.findall(r"\w+", declaration.removeprefix("const "))[:2]
    return Array(kind, name, tuple(map(int, re.findall(r"(\d+)\]", declaration))))
