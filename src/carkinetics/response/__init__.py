"""How response, toxicity and survival depend on exposure.

``patients`` lines exposure, covariates and outcome up; ``carrying`` turns a patient's exposure draws into what a
likelihood integrates over; ``terms`` with ``binary``, ``grades``, ``survival`` are the likelihoods, pure JAX;
``sampling`` finds modes and draws; ``result`` is what comes back; ``logistic_model``, ``ordinal_model`` and
``tte_model`` are the verbs; ``guards`` say what fools people.
"""
