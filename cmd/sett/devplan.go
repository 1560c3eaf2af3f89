package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/gofrs/flock"
)

// maxDevNodes is more than anybody wants on one machine.
const maxDevNodes = 9

// devPlan is who is who in a cluster of sett dev. It is kept in the data folder, so
// that a second start finds the same nodes.
type devPlan struct {
	Format int       `json:"format"`
	Nodes  []devNode `json:"nodes"`
}

// devPlanName is the file that holds the plan.
const devPlanName = "dev.json"

// devLockName is the first file in the folder, and held while a cluster runs there.
const devLockName = "dev.lock"

// devPlanFormat is the version of the file.
const devPlanFormat = 1

// devNode is one node: its addresses are host:port on loopback.
type devNode struct {
	ID     string `json:"id"`
	HTTP   string `json:"http"`
	Raft   string `json:"raft"`
	Gossip string `json:"gossip"`
}

func (n devNode) url() string { return "http://" + n.HTTP }

// takeDevFolder locks a folder for one sett dev at a time. It refuses one that holds
// something else.
func takeDevFolder(dir string) (*flock.Flock, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("look at the data folder: %w", err)
	}
	// Before there was a lock the plan was the first file.
	ours := slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() == devLockName || e.Name() == devPlanName })
	if len(entries) > 0 && !ours {
		return nil, usagef("%s is not empty and holds no cluster of sett dev: name an empty folder, or one that does not exist", dir)
	}
	lock := flock.New(filepath.Join(dir, devLockName), flock.SetPermissions(0o600))
	switch ok, err := lock.TryLock(); {
	case err != nil:
		return nil, fmt.Errorf("lock the data folder: %w", err)
	case !ok:
		return nil, fmt.Errorf("another sett dev runs in %s: stop it, or choose another --data-dir", dir)
	}
	return lock, nil
}

// planDev makes the plan for a start in dir: what the folder holds, with ports that
// are free, else a new one.
func planDev(dir string, o devOptions) (devPlan, error) {
	file := filepath.Join(dir, devPlanName)
	plan, err := readDevPlan(file)
	if err != nil {
		return plan, err
	}
	if len(plan.Nodes) == 0 {
		for i := range o.nodes {
			plan.Nodes = append(plan.Nodes, devNode{ID: "node" + strconv.Itoa(i+1)})
		}
	} else if o.nodesGiven && len(plan.Nodes) != o.nodes {
		return plan, usagef("%s holds a cluster of %d nodes: leave --nodes out, or choose another --data-dir", dir, len(plan.Nodes))
	}
	var held portSet
	defer held.release()
	for i := range plan.Nodes {
		n := &plan.Nodes[i]
		port := 0
		if o.httpBase != 0 {
			port = o.httpBase + i
		}
		if n.HTTP, err = held.take(loopback(port), false); err != nil {
			return plan, fmt.Errorf("port %d is needed for the HTTP API of %s and is in use: choose other ports with --http-base", port, n.ID)
		}
	}
	for i := range plan.Nodes {
		n := &plan.Nodes[i]
		if n.Raft, err = held.takeOrFree(n.Raft, false); err != nil {
			return plan, fmt.Errorf("find a free port: %w", err)
		}
		if n.Gossip, err = held.takeOrFree(n.Gossip, true); err != nil {
			return plan, fmt.Errorf("find a free port: %w", err)
		}
	}
	return plan, writeDevPlan(file, plan)
}

func readDevPlan(file string) (devPlan, error) {
	plan := devPlan{Format: devPlanFormat}
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return plan, nil
	}
	if err != nil {
		return plan, fmt.Errorf("read the plan of the cluster: %w", err)
	}
	if err := json.Unmarshal(data, &plan); err != nil || plan.Format != devPlanFormat || len(plan.Nodes) == 0 {
		return plan, fmt.Errorf("%s is not a plan of this version of sett dev: choose another --data-dir", file)
	}
	return plan, nil
}

func writeDevPlan(file string, plan devPlan) error {
	data, err := json.MarshalIndent(plan, "", "  ")
	if err != nil {
		return err
	}
	next := file + ".new"
	if err := os.WriteFile(next, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("keep the plan of the cluster: %w", err)
	}
	return os.Rename(next, file)
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// portSet holds ports open while a plan is made, so that none is taken twice.
type portSet struct {
	tcp []net.Listener
	udp []net.PacketConn
}

// take listens on addr (port 0: a free one) and returns the address that it got.
func (p *portSet) take(addr string, withUDP bool) (string, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return "", err
	}
	p.tcp = append(p.tcp, l)
	if withUDP {
		c, err := net.ListenPacket("udp", l.Addr().String())
		if err != nil {
			return "", err
		}
		p.udp = append(p.udp, c)
	}
	return l.Addr().String(), nil
}

// takeOrFree takes addr if that is possible, else a free port: the nodes find each
// other again by gossip.
func (p *portSet) takeOrFree(addr string, withUDP bool) (string, error) {
	if addr != "" {
		if got, err := p.take(addr, withUDP); err == nil {
			return got, nil
		}
	}
	var err error
	for range 20 { // a free TCP port may be busy for UDP
		var got string
		if got, err = p.take(loopback(0), withUDP); err == nil {
			return got, nil
		}
	}
	return "", err
}

func (p *portSet) release() {
	for _, l := range p.tcp {
		l.Close()
	}
	for _, c := range p.udp {
		c.Close()
	}
}
