"""Prune-OPD: on-policy distillation that stops spending compute where the teacher can no longer
teach.

``drift``, ``reward`` and ``loss`` are pure functions of tensors and need torch alone; ``budget`` is
plain Python. Everything that touches verl sits in the modules named after the verl part they adapt.
"""
