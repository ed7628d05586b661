"""Numbers as users write and read them."""

import ast
import operator

from unfooled.errors import InputError

_OPERATORS = {ast.Div: operator.truediv, ast.Mult: operator.mul, ast.Sub: operator.sub, ast.Add: operator.add}


def parse_number(text: str) -> float:
    """Read a number or a fraction such as '8/255'; raises InputError."""

    def value(node: ast.expr) -> float:
        match node:
            case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
                return float(number)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return float(_OPERATORS[type(op)](value(left), value(right)))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -value(operand)
        raise ValueError

    try:
        return value(ast.parse(text.strip(), mode="eval").body)
    except (ValueError, SyntaxError, ArithmeticError, RecursionError, MemoryError):
        raise InputError(f"{text!r} is no number; write for example 0.03 or 8/255.") from None


def counted(n: int, what: str) -> str:
    """Return "1 row", "2,000 rows"."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"
