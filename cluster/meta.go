package cluster

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// The gossip metadata of a node: a version byte, then fields of tag, length, value,
// in ascending order of tags. Fields of unknown tags are skipped, so that later
// versions may add some; a different version byte is a stranger.
const (
	metaVersion    = 1
	maxMetaBytes   = 512 // memberlist's limit
	maxClusterName = 255 // memberlist's limit for a label

	tagName      = 1
	tagCluster   = 2
	tagRaftAddr  = 3
	tagHTTPAddr  = 4
	tagVersion   = 5
	tagFlags     = 6
	tagExpect    = 7
	flagNonvoter = 1 << 0
	flagPromised = 1 << 1 // holds a formation promise
	flagRemoved  = 1 << 2
	flagStarted  = 1 << 3 // holds Raft state
	flagWaits    = 1 << 4 // was told of nobody to join: comes only when asked for
)

// meta is what a node says of itself in gossip. Its server id is the memberlist name.
type meta struct {
	Name      string
	ClusterID string // "" before formation or adoption
	RaftAddr  string
	HTTPAddr  string
	Version   string
	Expect    int // bootstrap-expect

	Nonvoter, Promised, Removed, Started, Waits bool
}

// encode returns the metadata, or an error that says what to shorten.
func (m meta) encode() ([]byte, error) {
	b := []byte{metaVersion}
	for _, f := range []struct {
		tag byte
		v   string
	}{{tagName, m.Name}, {tagCluster, m.ClusterID}, {tagRaftAddr, m.RaftAddr}, {tagHTTPAddr, m.HTTPAddr}, {tagVersion, m.Version}} {
		if f.v == "" {
			continue
		}
		b = append(b, f.tag)
		b = binary.AppendUvarint(b, uint64(len(f.v)))
		b = append(b, f.v...)
	}
	var flags byte
	for bit, on := range map[byte]bool{flagNonvoter: m.Nonvoter, flagPromised: m.Promised, flagRemoved: m.Removed, flagStarted: m.Started, flagWaits: m.Waits} {
		if on {
			flags |= bit
		}
	}
	if flags != 0 {
		b = append(b, tagFlags, 1, flags)
	}
	if m.Expect > 0 {
		b = append(b, tagExpect, 1, byte(m.Expect))
	}
	if len(b) > maxMetaBytes {
		return nil, fmt.Errorf("the node's id, addresses and version take %d bytes of gossip metadata; at most %d fit: shorten the id or the addresses", len(b), maxMetaBytes)
	}
	return b, nil
}

func decodeMeta(b []byte) (meta, error) {
	var m meta
	if len(b) == 0 {
		return m, errors.New("no metadata")
	}
	if len(b) > maxMetaBytes {
		return m, errors.New("too much metadata")
	}
	if b[0] != metaVersion {
		return m, fmt.Errorf("metadata version %d is not known", b[0])
	}
	b = b[1:]
	for last := byte(0); len(b) > 0; {
		tag := b[0]
		if tag <= last {
			return m, errors.New("metadata fields out of order")
		}
		last = tag
		n, w := binary.Uvarint(b[1:])
		if w <= 0 || n > uint64(len(b)-1-w) {
			return m, errors.New("metadata cut short")
		}
		v := b[1+w : 1+w+int(n)]
		b = b[1+w+int(n):]
		switch tag {
		case tagName:
			m.Name = string(v)
		case tagCluster:
			m.ClusterID = string(v)
		case tagRaftAddr:
			m.RaftAddr = string(v)
		case tagHTTPAddr:
			m.HTTPAddr = string(v)
		case tagVersion:
			m.Version = string(v)
		case tagFlags, tagExpect:
			if len(v) != 1 {
				return m, errors.New("metadata field of a wrong size")
			}
			if tag == tagExpect {
				m.Expect = int(v[0])
				continue
			}
			m.Nonvoter, m.Promised = v[0]&flagNonvoter != 0, v[0]&flagPromised != 0
			m.Removed, m.Started, m.Waits = v[0]&flagRemoved != 0, v[0]&flagStarted != 0, v[0]&flagWaits != 0
		}
	}
	if m.Name == "" {
		return m, errors.New("metadata without a name")
	}
	return m, nil
}

// peer is a member as gossip sees it now.
type peer struct {
	meta
	ServerID   string
	GossipAddr string
}

func (p peer) founder() founder {
	return founder{ID: p.ServerID, Name: p.Name, RaftAddr: p.RaftAddr, HTTPAddr: p.HTTPAddr}
}
