//go:build mutant_forget_doubt

package httpapi

const mutantForgetDoubt = true
