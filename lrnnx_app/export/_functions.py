"""Turns an exported graph into Python functions, one for each kind of module, that other libraries run.

Nodes of a module's call become a function of its parameters, its tensors and its state. Modules of one kind
whose functions read alike share one, wherever they are in the model. Integers of shapes are read off the
function's own arguments, so that the text serves every batch and every number of steps.
"""

import ast
import builtins
import keyword
import operator
import re
from collections import Counter
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch import fx, nn
from torch.utils._sympy.printers import PythonPrinter

from lrnnx_app.errors import StreamError, UserError
from lrnnx_app.export import _rules
from lrnnx_app.export._folded import folded
from lrnnx_app.export._free import own

INLINE = 72  # most letters of an expression that is written where it is used
SMALL = 3  # nodes of a module that gets no function of its own
READ_OFTEN = 9  # uses for which an operand of a split counts, so that it gets a name
WORDS = {"linear": "y", "stack": "z", "view": "x", "cat": "z", "where": "x", "addcmul": "y", "add": "y"}
RESERVED = {*dir(builtins), "jax", "jnp", "np", "where", "partial"}
SHORT = re.compile(r"-?\d+|np\.arange\(\w+\)|\w+(\[[^\[\]]*\])*")  # text that needs no name
PART = operator.getitem  # of what returns several tensors


@dataclass(frozen=True)
class Argument:
    """A placeholder: a tensor that the caller gives, by its text; or a parameter, by its dotted path."""

    name: str
    path: str = ""


@dataclass
class Functions:
    """The functions written so far: name by text without the name."""

    texts: dict[str, str] = field(default_factory=dict)
    used: Counter[str] = field(default_factory=Counter)

    def add(self, name: str, text: str) -> str:
        """The name of a function with this text, which may be there already."""
        if text not in self.texts:
            self.used[name] += 1
            self.texts[text] = name if self.used[name] == 1 else f"{name}_{self.used[name]}"
        return self.texts[text]

    def source(self) -> str:
        return "\n\n\n".join(f"def {name}{text}" for text, name in self.texts.items())


class Graph:
    """An exported graph, with each node's place among the calls of modules.

    Args:
        graph: of operators that `_rules` knows.
        arguments: of each placeholder.
        root: the module that was exported.
        functions: takes the functions.
        composed: names of operators that became several nodes, which get a function of their own.
        constants: the text of each tensor that is no parameter, by its path.

    Attributes:
        steps: name of the function of one step, by the path of a layer that runs step by step.
        handed: names of the tensors of the state that the graph returns.
    """

    def __init__(
        self,
        graph: fx.Graph,
        arguments: Mapping[fx.Node, Argument],
        root: nn.Module,
        functions: Functions,
        composed: Container[str],
        constants: Mapping[str, str],
    ) -> None:
        self.arguments, self.root, self.functions, self.constants = arguments, root, functions, constants
        self.steps: dict[str, str] = {}
        self.handed: dict[fx.Node, str] = {}
        nodes = [
            node for node in graph.nodes if node.op == "call_function" and node.meta.get("val") is not None
        ]
        nodes = [node for node in nodes if not is_number(node)]
        self.calls = _calls(nodes, composed)
        self.same = self._merged(nodes)
        self.nodes = [node for node in nodes if node not in self.same]
        self.returned: Any = graph.output_node().args[0]

    def kept(self, node: fx.Node) -> fx.Node:
        """The node that stands for this one and its equals."""
        return self.same.get(node, node)

    def returned_nodes(self) -> list[fx.Node]:
        """What the graph returns, in its order."""
        return [self.kept(node) for node in self.returned]

    def operands(self, node: fx.Node) -> list[fx.Node]:
        """The tensors that a node reads, in order."""
        return [self.kept(operand) for operand in node.all_input_nodes if not is_number(operand)]

    def _merged(self, nodes: list[fx.Node]) -> dict[fx.Node, fx.Node]:
        """Nodes that compute what another one of the same call does, and which."""
        first: dict[Any, fx.Node] = {}
        same: dict[fx.Node, fx.Node] = {}

        def brief(x: Any) -> Any:
            if isinstance(x, fx.Node):
                return str(x.meta["val"]) if is_number(x) else same.get(x, x)
            return (type(x).__name__, *map(brief, x)) if isinstance(x, (list, tuple)) else repr(x)

        for node in nodes:
            call = tuple(key for key, _ in self.calls[node])
            key = (node.target, brief(node.args), brief(tuple(node.kwargs.items())), call)
            if first.setdefault(key, node) is not node:
                same[node] = first[key]
        return same


def _calls(nodes: list[fx.Node], composed: Container[str]) -> dict[fx.Node, list[tuple[str, str]]]:
    """The calls that each node belongs to, from the outermost: (key of the call, path of the module).

    For nodes of a composed operator the path is `op NAME`. A node without a place has that of the one before.
    """
    calls: dict[fx.Node, list[tuple[str, str]]] = {}
    last: list[tuple[str, str]] = []
    for node in nodes:
        stack = node.meta.get("nn_module_stack") or {}
        if stack and not any(path.startswith("_empty") for path, _ in stack.values()):
            last = [(key, own(path)) for key, (path, _) in stack.items() if own(path)]
            source = node.meta.get("original_aten")
            if str(source) in composed:
                last = [*last, (node.meta["from_node"][-1].name, f"op {str(source).split('.')[1]}")]
        calls[node] = last
    return calls


class Region:
    """The nodes of one call, and the function that is made of them.

    Attributes:
        given: its arguments but the parameters `p` of its own module, which it takes if it `owns` any.
        results: what it returns.
    """

    def __init__(self, graph: Graph, nodes: list[fx.Node], depth: int, path: str) -> None:
        self.graph, self.nodes, self.depth, self.path = graph, nodes, depth, path
        inside = set(nodes)
        read = dict.fromkeys(operand for node in nodes for operand in graph.operands(node))
        self.given = sorted(
            (node for node in read if node not in inside and not self._owned(node)), key=self._order
        )
        self.owns = any(
            self._owned(node) and graph.arguments[node].path not in graph.constants for node in read
        )
        users = {operand for node in graph.nodes if node not in inside for operand in graph.operands(node)}
        returned = set(graph.returned_nodes())
        self.results = [node for node in nodes if node in users or node in returned]
        self.results.sort(key=lambda node: node not in users)  # what is only handed on comes last
        self.uses: Counter[fx.Node] = Counter(self.results)
        for node in nodes:
            for operand in graph.operands(node):
                self.uses[operand] += READ_OFTEN if _rules.pieces(node) is not None else 1
        self.lines: list[str] = []
        self.texts: dict[fx.Node, str] = {}
        self.names: Counter[str] = Counter({"p": 1, "B": 1, "T": 1})
        self.sizes: dict[Any, tuple[str, str]] = {}  # of an axis of an argument: name, text
        self.missing: dict[Any, str] = {}  # sizes that follow from no argument, and so are arguments
        self.read: set[str] = set()  # names of sizes that the lines contain

    def _owned(self, node: fx.Node) -> bool:
        """Whether it is a parameter of this module, or a constant."""
        argument = self.graph.arguments.get(node)
        if argument is None or not argument.path:
            return False
        inside = self.path == "" or argument.path.startswith(f"{self.path}.")
        return inside or argument.path in self.graph.constants

    def _order(self, node: fx.Node) -> int:
        """Activations come first, then the caller's tensors, then parameters of other modules."""
        argument = self.graph.arguments.get(node)
        if argument is None:
            return 0 if node.meta["val"].dtype.is_floating_point else 3
        return 4 if argument.path else {"x": 0, "dt": 2, "lengths": 3}.get(argument.name, 1)

    def function(self, name: str = "") -> str:
        """Write the function and return its name."""
        words = ["p"] * self.owns
        for node in self.given:
            argument = self.graph.arguments.get(node)
            if argument is not None:
                word = re.findall(r"\w+", argument.path or argument.name)[-1]
            else:
                word = _word(node)
            words.append(self.name(word))
            self.take(node, words[-1])
        return self.finish(name or self.word(), words, lambda: ", ".join(map(self.text, self.results)))

    def take(self, node: fx.Node, name: str) -> None:
        """Take note of an argument and of its sizes."""
        self.texts[node] = name
        self.names[name] += name not in self.names
        for axis, n in enumerate(node.meta["val"].shape):
            if isinstance(n, torch.SymInt) and n.node.expr.free_symbols and n.node.expr not in self.sizes:
                word = ("B", "T")[len(self.sizes)] if len(self.sizes) < 2 else f"N{len(self.sizes)}"
                self.sizes[n.node.expr] = (word, f"{name}.shape[{axis}]")

    def finish(self, name: str, words: list[str], returned: Callable[[], str]) -> str:
        """Write the lines, and the function around them with these arguments."""
        self._write()
        last = f"return {returned()}"
        if self.missing and not self.path:
            raise StreamError(f"a size of this model follows from no argument: {next(iter(self.missing))}")
        sizes = [f"{word} = {text}" for word, text in self.sizes.values() if word in self.read]
        lines = [line.replace("'", '"') for line in (*sizes, *self.lines, last)]
        body = [f"    {line}".rstrip() for line in self._doc()] + [folded(f"    {line}") for line in lines]
        head = folded(f"({', '.join((*words, *self.missing.values()))}):")
        return self.graph.functions.add(name, "\n".join((head, *body)))

    def word(self) -> str:
        """The name of the function: that of the operator, or of the module's class."""
        if self.path.startswith("op "):
            return self.path[3:]
        kind = type(self.graph.root.get_submodule(self.path)).__name__
        return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", kind).lower()

    def _doc(self) -> list[str]:
        """A docstring: what the module is, and the shapes of what goes in and out."""
        first = f"The operator `{self.path[3:]}`."
        if not self.path.startswith("op "):
            kind = type(self.graph.root.get_submodule(self.path))
            first = (kind.__doc__ or kind.__name__).strip().splitlines()[0]
        ins = ", ".join(f"{self.texts[node]} {self._shape(node)}" for node in self.given)
        return [f'"""{first}', "", ins, f"→ {', '.join(map(self._shape, self.results))}", '"""']

    def _shape(self, node: fx.Node) -> str:
        read = set(self.read)
        text = self.text(tuple(node.meta["val"].shape))
        self.read = read
        return text

    def _write(self) -> None:
        """Fill `lines`: each call of a part as one line, other nodes one by one."""
        at, calls = 0, self.graph.calls
        while at < len(self.nodes):
            call, stop = calls[self.nodes[at]][self.depth : self.depth + 1], at + 1
            while call and stop < len(self.nodes) and calls[self.nodes[stop]][self.depth :][:1] == call:
                stop += 1
            part = self.nodes[at:stop]
            if call and (len(part) > SMALL or call[0][1].startswith("op ")):
                self._call(Region(self.graph, part, self.depth + 1, call[0][1]))
            else:
                for node in part:
                    self._node(node)
            at = stop

    def _call(self, region: "Region") -> None:
        name = region.function()
        given = [self.text(node) for node in region.given] + [self.size(size) for size in region.missing]
        given = [self._parameters(region.path)] * region.owns + given
        results = ", ".join(map(self._result, region.results))
        self.lines.append(f"{results} = {name}({', '.join(given)})")

    def _parameters(self, path: str) -> str:
        """The parameters of a part, or one of them."""
        inner = path.removeprefix(self.path).removeprefix(".")
        return "p" + "".join(f'["{word}"]' for word in inner.split(".") if inner)

    def _result(self, node: fx.Node) -> str:
        self.texts[node] = self.name(self.graph.handed.get(node, _word(node)))
        return self.texts[node]

    def _node(self, node: fx.Node) -> None:
        if node.target is PART:
            args: Any = node.args
            if _rules.pieces(args[0]) is not None:
                self._keep(node, _rules.part(self._bracketed, *args))
        elif isinstance(node.meta["val"], (tuple, list)):
            if _rules.pieces(node) is None:
                users = {user.args[1]: self.graph.kept(user) for user in node.users if user.target is PART}
                parts = [users.get(k) for k in range(len(node.meta["val"]))]
                names = ["_" if part not in self.uses else self._result(part) for part in parts]  # type: ignore[arg-type]  (nodes)
                self.lines.append(f"{', '.join(names)} = {_plain(self._expression(node))}")
        else:
            self._keep(node, self._expression(node))

    def _keep(self, node: fx.Node, text: str) -> None:
        """Give a node's text a name, or write it where it is used."""
        text = _plain(text)
        if SHORT.fullmatch(text) or (self.uses[node] == 1 and len(text) <= INLINE):
            self.texts[node] = text
            return
        word = str(node.target).split(".")[1] if "." in str(node.target) else _word(node)
        self.texts[node] = self.name(WORDS.get(word, word))
        self.lines.append(f"{self.texts[node]} = {text}")

    def _expression(self, node: fx.Node) -> str:
        name, args = _rules.named(node.target), list(node.args)
        if name == "lrnnx_export.by_step.default":
            return self._by_step(*args)
        if name in _rules.RULES:
            return _rules.RULES[name](self._bracketed, node, args)
        if name not in _rules.LINES:
            raise UserError(
                f"torch's operator {name} is not known to this format: see lrnnx_app/export/_rules.py"
            )
        return _rules.line(name, self._bracketed, node)

    def _by_step(self, x: Any, state: Any, _: Any, dt: Any, lengths: Any, path: Any) -> str:
        """The call of a layer that runs step by step: its function is one step."""
        inner = "x, dt, *h" if dt is not None else "x, *h"
        call = f"{self.graph.steps[path]}({self._parameters(path)}, {inner})"
        given = ", ".join(map(self.text, (x, tuple(state), lengths, *([] if dt is None else [dt]))))
        return f"by_step(lambda x, dt, *h: {call}, {given})"

    def text(self, x: Any) -> str:
        """The text of an operand."""
        if isinstance(x, torch.SymInt) or (isinstance(x, fx.Node) and is_number(x)):
            return self.size(x.meta["val"] if isinstance(x, fx.Node) else x)
        if isinstance(x, fx.Node):
            x = self.graph.kept(x)
            if x in self.texts:
                return self.texts[x]
            path = self.graph.arguments[x].path
            return self.graph.constants.get(path) or self._parameters(path)
        if isinstance(x, (tuple, list)):
            return f"({', '.join(map(self.text, x))}{',' * (len(x) == 1)})"
        return repr(x) if isinstance(x, (bool, str)) or x is None else _rules.number(x)

    def _bracketed(self, x: Any) -> str:
        """An operand in brackets; those that are not needed go when the line is parsed."""
        text = self.text(x)
        return text if isinstance(x, (tuple, list)) or re.fullmatch(r"\w+", text) else f"({text})"

    def size(self, n: Any) -> str:
        """An integer of a shape, from the shapes of this function's arguments."""
        whole: Any = n.node.expr if isinstance(n, torch.SymInt) else sympy.sympify(n)
        expr, named = whole, set[Any]()
        for known in sorted(self.sizes, key=lambda known: -known.count_ops()):
            symbol = sympy.Symbol(self.sizes[known][0], integer=True, positive=True)
            expr = expr.xreplace({known: symbol})
            named.add(symbol)
        for lost in expr.free_symbols - named:
            for known, (word, _) in self.sizes.items():
                if (known / lost).is_Integer:  # the axis is a multiple of it
                    symbol = sympy.Symbol(f"({word} // {known / lost})", integer=True, positive=True)
                    expr = expr.xreplace({lost: symbol})
                    named.add(symbol)
                    break
        if expr.free_symbols - named:
            return self.missing.setdefault(whole, f"n{len(self.missing)}")
        self.read |= {word for symbol in expr.free_symbols for word in re.findall(r"[A-Z]\w*", str(symbol))}
        return PythonPrinter().doprint(expr)

    def name(self, word: str) -> str:
        """A name that is not used yet."""
        word += "_" * (keyword.iskeyword(word) or word in RESERVED)
        self.names[word] += 1
        return word if self.names[word] == 1 else f"{word}_{self.names[word] - 1}"


def _plain(text: str) -> str:
    """An expression without brackets that are not needed."""
    return ast.unparse(ast.parse(text, mode="eval"))


def _word(node: fx.Node) -> str:
    kind = node.meta["val"].dtype
    return "x" if kind.is_floating_point else "mask" if kind is torch.bool else "lengths"


def is_number(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), (int, float, torch.SymInt, torch.SymFloat, torch.SymBool))
