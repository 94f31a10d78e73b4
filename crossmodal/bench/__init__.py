"""How fast the operators are, beside what torch offers for the same thing: `crossmodal bench` and `benchmarks/`.

    shapes -> ops/<op>: a Case of providers -> answers (who is right) -> timing (interleaved) -> comparison (rows)
        -> results (JSON) -> table, pictures, README

Every number is a median over interleaved calls in one process, every speed-up a median of ratios within a round.
"""
