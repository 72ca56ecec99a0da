"""The annotation application: people correct or label answers; what they typed becomes training data and scores."""
