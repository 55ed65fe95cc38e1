"""Symbols of answers, as tables without rules: which character or command says what in LaTeX.

A table has a line for each notation: the one that is kept, then all that are written for it.
"""


def words(text: str) -> list[str]:
    """Split a text into words, so that a list of many is one string."""
    return text.split()


def table(lines: str) -> dict[str, str]:
    """Read a table: what may be written -> the notation that is kept.

    Raises:
        ValueError: two lines claim the same.
    """
    found: dict[str, str] = {}
    for kept, *variants in (line.split() for line in lines.strip().splitlines()):
        for written in variants:
            if found.setdefault(written, kept) != kept:
                raise ValueError(f"{written} is kept as {found[written]} and as {kept}")
    return found


ROW = "\ue000"
"""End of a matrix's row, a character that no answer has."""

COMMANDS = table(r"""
    \times ×
    \cdot · ⋅ ∙ •
    \pm ±
    \mp ∓
    \sqrt √
    \sqrt[3] ∛
    \sqrt[4] ∜
    \infty ∞
    \le ≤ ⩽
    \ge ≥ ⩾
    \ne ≠
    \approx ≈ ≃
    \in ∈
    \notin ∉
    \cup ∪
    \cap ∩
    \setminus ∖
    \emptyset ∅
    ^\circ ° º
    \lfloor ⌊
    \rfloor ⌋
    \lceil ⌈
    \rceil ⌉
    \langle ⟨
    \rangle ⟩
    \forall ∀
    \sum ∑
    \int ∫
    \to →
    \phi ϕ
    \pi 𝜋
""")
"""Character -> command, without the space that ends it."""
SIGNS = table(r"""
    * ∗
    / ÷ ⁄
    - − – — ‐ ‑
    ' ′ ’
    " “ ”
    . 。
    , 、
    e 𝑒 ⅇ ℯ
    i ⅈ
    \mathbb{R} ℝ
    \mathbb{Z} ℤ
    \mathbb{Q} ℚ
    \mathbb{N} ℕ
    \mathbb{C} ℂ
""")
"""Character -> text that needs no space behind it."""
CHARACTERS = {
    **{character: f"{command} " for character, command in COMMANDS.items()},
    **SIGNS,
    **dict.fromkeys("€£¥「」", ""),
    "∧": r"\text{ and }",
    "∨": r"\text{ or }",
    "¢": r"\text{ cents}",
}
"""Character -> LaTeX."""
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱˣ", "0123456789+-()nix")
SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙᵢₖ", "0123456789+-()nik")

SYNONYMS = table(r"""
    \frac \dfrac \tfrac \cfrac \sfrac \nicefrac
    \binom \dbinom \tbinom
    \le \leq \leqslant
    \ge \geq \geqslant
    \ne \neq
    < \lt
    > \gt
    = \doteq
    \approx \simeq
    ^\circ \degree \textdegree \deg
    \{ \lbrace
    \} \rbrace
    [ \lbrack
    ] \rbrack
    ( \lparen
    ) \rparen
    | \lvert \rvert \vert \mid
    \pi \uppi \mathpi
    \phi \varphi
    e \e \exponentialE
    i \imath \imaginaryI
    / \div \slash
    * \ast \star
    \cdot \cdotp \bullet
    : \colon
    \and \land \wedge \&
    \or \lor \vee
    \cup \bigcup
    \cap \bigcap
    \setminus \backslash
    \emptyset \varnothing
    \infty \infin
    \log \lg
    \dots \ldots \cdots
    \mathbb{R} \R \Reals \reals
    \mathbb{Z} \Z
    \mathbb{N} \N
    % \% \percent
""")
SYNONYMS[r"\cr"] = ROW
SYNONYMS |= dict.fromkeys(words(r"\$ \# \dollar \textdollar \pounds \euro \checkmark"), "")
"""Command -> the one that is kept, or nothing."""

LAYOUTS = words(r"""
    left right middle bigg?[lrm]? Bigg?[lrm]? displaystyle textstyle scriptstyle scriptscriptstyle
    limits nolimits tiny scriptsize footnotesize small normalsize large Large LARGE huge Huge
    bf rm it sf tt sl bfseries itshape mdseries rmfamily centering noindent hfill null relax
    color\s*\{[^{}]*\} hspace\*?\s*\{[^{}]*\} vspace\*?\s*\{[^{}]*\} label\s*\{[^{}]*\}
    tag\*?\s*\{[^{}]*\} phantom\s*\{[^{}]*\} unicode\{[^{}]*\}
""")
"""Commands, with their arguments, that change only where or how large something is printed."""
SPACES = words("quad qquad enspace enskip thinspace medspace thickspace")
"""Commands that are white space."""
DECORATIONS = words("""
    boldsymbol pmb bm underline uline mathbf mathit mathsf mathtt mathnormal mathbin mathrel mathord
    emph ensuremath boxed fbox framebox displaylines bf underbar textup mathstrut hl symbf symrm
    symbfup smash mathop
""")
"""Commands that change only the looks of their argument."""
TEXTS = words(r"""
    text textbf textit textrm textsf texttt textsc textnormal textsl mbox hbox mathrm operatorname
    operatorname\*
""")
"""Commands whose argument is upright text."""
COLOURS = words("textcolor colorbox color fcolorbox")
"""Commands of two arguments, a colour and what is printed in it."""
ENVIRONMENTS = words("align aligned equation gather gathered split center math cases")
"""Environments around an answer that are no part of it."""
TAGS = words("b i u em strong answer br p span div code center")
"""HTML around an answer."""
FUNCTIONS = words("""
    arcsin arccos arctan arccot arcsec arccsc sinh cosh tanh sin cos tan cot sec csc ln log exp lim
    max min gcd lcm
""")
GREEK = words("""
    alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau phi
    chi psi omega
""")
NUMERALS = words("zero one two three four five six seven eight nine ten eleven twelve")
"""Numbers as words, each at its own index."""
OPERATORS = {"+/-": r"\pm ", "<=": r"\le ", ">=": r"\ge ", "!=": r"\ne ", "==": "="}
"""Plain text -> LaTeX."""
MEASURES = words(
    "个 元 种 次 人 天 年 米 厘米 千米 公里 度 小时 分钟 秒 名 本 只 条 张 岁 项 组 对"
)
"""Chinese words of measure behind a number."""
