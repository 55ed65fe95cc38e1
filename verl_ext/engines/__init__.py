"""Logits as verl's training engines show them, a module for each way, which has a class with

* ``arrange(ids, tokens)``: values of all packed tokens, (S, K) -> (N, K), those of the rows whose
  logits this rank holds;
* ``score(logits, ...)``, ``log_probs_at(logits, ids)``: as in ``verl_ext.logits``, over the whole
  vocabulary even where this rank holds a part of it.
"""
