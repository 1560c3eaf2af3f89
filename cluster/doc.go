// Package cluster knows who is here and who belongs: gossip, first formation, join
// and leave, and the leader's reconciler. It proposes membership changes through the
// Consensus it is given; it never makes one itself.
//
// What it holds:
//
//   - Gossip (hashicorp/memberlist) tells who is alive and at which addresses. It
//     informs; it never votes anybody in or out (Invariant 26).
//   - Formation, once in a cluster's life: a pure state machine (formation.go) under
//     a thin layer of HTTP. It can't split (Invariant 28).
//   - The reconciler, on the leader only: takes in newcomers as nonvoters, makes them
//     voters once they have caught up and stayed so, follows changed addresses, and
//     replaces a server whose data was lost (Invariant 27). It plans in a pure
//     function (plan.go) and does one membership change at a time.
//   - Administration: add, remove, promote, demote, transfer, with the guards of
//     Invariant 29.
//   - The peer protocol: JSON over HTTP under /internal/v1/. Each call names the
//     server it is meant for and carries the cluster id; strangers are refused.
//   - cluster.json in the data folder: cluster id, formation promise, removed mark.
//
// What it does not do: it keeps no replicated state (Directory does), runs no Raft
// (Consensus does), and serves no client (httpapi does). Package node wires it.
//
// Words: a server is a row of the Raft configuration, named by a UUID made with its
// data folder; a member is what people see, named by its id; a peer is what gossip
// sees; a founder is a member of the first configuration.
package cluster
