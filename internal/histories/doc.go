// Package histories records what clients see of a cluster, and holds it against
// specifications that porcupine checks for linearizability. The in-process clusters and
// the real processes of the fault tests share it.
package histories
