"""Trials as data, simulated from enrolment to decision, and judged by simulating many of them."""
