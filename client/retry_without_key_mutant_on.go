//go:build mutant_retry_without_key

package client

const mutantRetryWithoutKey = true
