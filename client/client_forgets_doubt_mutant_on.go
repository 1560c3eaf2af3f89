//go:build mutant_client_forgets_doubt

package client

const mutantClientForgetsDoubt = true
