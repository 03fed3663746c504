"""Spans: made cheaply, sampled, kept until they are taken, written as OTLP."""
