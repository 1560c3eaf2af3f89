package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
)

func isWildcard(host string) bool {
	if host == "" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsUnspecified()
}

// derive fills in what depends on the machine: the name of the node, and the
// addresses that others are told. interfaces lists the machine's own addresses.
func (l *Loaded) derive(interfaces func() ([]netip.Addr, error)) error {
	c := &l.Config
	if c.ID == "" {
		id, err := defaultID()
		if err != nil {
			return fmt.Errorf("the host name cannot be this node's id (%w): set --id", err)
		}
		c.ID, l.sources["id"] = id, "default, the host name"
	}
	for _, a := range []struct {
		bind      string
		advertise *string
		name      string
	}{
		{c.HTTPAddr, &c.HTTPAdvertise, "http"},
		{c.RaftAddr, &c.RaftAdvertise, "raft"},
		{c.GossipAddr, &c.GossipAdvertise, "gossip"},
	} {
		if *a.advertise != "" {
			continue
		}
		host, port, err := net.SplitHostPort(a.bind)
		if err != nil {
			return err
		}
		from := "default, from " + a.name + "-addr"
		if isWildcard(host) {
			if host, err = reachableHost(interfaces); err != nil {
				return fmt.Errorf("%s-addr is a wildcard and this machine's address is not known (%w): set --%s-advertise", a.name, err, a.name)
			}
			from += ", a wildcard"
		}
		*a.advertise = net.JoinHostPort(host, port)
		l.sources[a.name+"-advertise"] = from
	}
	return nil
}

// reachableHost is the first address that is not loopback, IPv4 before IPv6, else
// the host name.
func reachableHost(interfaces func() ([]netip.Addr, error)) (string, error) {
	addrs, err := interfaces()
	if err != nil {
		return "", err
	}
	for _, want4 := range []bool{true, false} {
		for _, a := range addrs {
			if a.IsLoopback() || a.IsLinkLocalUnicast() || a.Is4() != want4 {
				continue
			}
			return a.String(), nil
		}
	}
	host, err := os.Hostname()
	if err == nil && host == "" {
		err = errors.New("no host name")
	}
	return host, err
}

// machineAddrs lists the machine's addresses, 4-in-6 forms unwrapped.
func machineAddrs() ([]netip.Addr, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var addrs []netip.Addr
	for _, a := range list {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok {
				addrs = append(addrs, ip.Unmap())
			}
		}
	}
	return addrs, nil
}
