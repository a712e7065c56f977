"""Differential privacy: `policy.Privacy` takes over trainings, `ledger.Ledger` keeps what data sets have spent."""
