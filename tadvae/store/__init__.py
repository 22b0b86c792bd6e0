"""The cell store: conversion of .h5ad files to Parquet shards, and reading them."""
