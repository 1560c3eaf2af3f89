package consensus

import (
	"errors"
	"fmt"
	"io"
)

// Every connection begins with a hello of the dialer and an answer of the acceptor,
// before any byte of raft's own protocol:
//
//	hello   magic[8] version[1] nameLen[1] cluster fromLen[1] from toLen[1] to
//	answer  magic[8] version[1] status[1] fromLen[1] from
//
// Raft's messages name neither the cluster nor the receiver: with a reused address,
// a foreign leader of a higher term would take a node over.
const (
	handshakeMagic   = "SettRaft"
	handshakeVersion = 1
	maxNameBytes     = 255
)

// The statuses of an answer. The numbers are part of the protocol.
const (
	statusOK             byte = 0
	statusForeignCluster byte = 1 // the acceptor belongs to another cluster, or to none
	statusWrongServer    byte = 2 // the connection was meant for another server
	statusVersion        byte = 3 // the acceptor does not speak this version
)

type hello struct {
	Cluster string
	From    string
	To      string
}

var (
	errNotSett = errors.New("the other side does not speak Sett's Raft protocol")
	errVersion = errors.New("the other side speaks another version of Sett's Raft protocol")
)

func appendName(b []byte, name string) []byte {
	return append(append(b, byte(len(name))), name...)
}

func (h hello) encode() ([]byte, error) {
	b := append([]byte(handshakeMagic), handshakeVersion)
	for _, name := range []string{h.Cluster, h.From, h.To} {
		if name == "" || len(name) > maxNameBytes {
			return nil, fmt.Errorf("a name in a handshake must have 1 to %d bytes", maxNameBytes)
		}
		b = appendName(b, name)
	}
	return b, nil
}

// readPreamble reads magic and version. It reads not a byte more, and allocates
// nothing that depends on the input.
func readPreamble(r io.Reader) error {
	var b [len(handshakeMagic) + 1]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return err
	}
	if string(b[:len(handshakeMagic)]) != handshakeMagic {
		return errNotSett
	}
	if b[len(handshakeMagic)] != handshakeVersion {
		return errVersion
	}
	return nil
}

// readName reads a name of at most maxNameBytes.
func readName(r io.Reader) (string, error) {
	var b [1 + maxNameBytes]byte
	if _, err := io.ReadFull(r, b[:1]); err != nil {
		return "", err
	}
	if b[0] == 0 {
		return "", errNotSett
	}
	name := b[1 : 1+int(b[0])]
	if _, err := io.ReadFull(r, name); err != nil {
		return "", err
	}
	return string(name), nil
}

func readHello(r io.Reader) (h hello, err error) {
	if err = readPreamble(r); err != nil {
		return hello{}, err
	}
	for _, name := range []*string{&h.Cluster, &h.From, &h.To} {
		if *name, err = readName(r); err != nil {
			return hello{}, err
		}
	}
	return h, nil
}

func encodeAnswer(status byte, from string) []byte {
	b := append([]byte(handshakeMagic), handshakeVersion, status)
	return appendName(b, from)
}

func readAnswer(r io.Reader) (status byte, from string, err error) {
	if err = readPreamble(r); err != nil {
		return 0, "", err
	}
	var b [1]byte
	if _, err = io.ReadFull(r, b[:]); err != nil {
		return 0, "", err
	}
	from, err = readName(r)
	return b[0], from, err
}
