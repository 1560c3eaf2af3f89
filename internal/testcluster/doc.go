// Package testcluster runs a whole cluster of Sett nodes inside one test process,
// over a network whose faults the test commands. Everything is real but that
// network and the timeouts: the nodes have databases on disk, speak Raft and HTTP
// (over internal/faultnet) and gossip (over loopback).
package testcluster
