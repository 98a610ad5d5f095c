"""Answering CLEVRER questions from slots: questions as numbers, the ALOE transformer, submissions and their scores."""
