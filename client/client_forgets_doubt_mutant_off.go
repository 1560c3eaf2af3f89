//go:build !mutant_client_forgets_doubt

package client

// mutantClientForgetsDoubt, when built with the tag mutant_client_forgets_doubt, takes what became of the last attempt of a
// write for what became of the write; a test has to notice.
const mutantClientForgetsDoubt = false
