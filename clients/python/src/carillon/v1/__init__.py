"""The contract, generated from protos/carillon/v1; never edited."""
