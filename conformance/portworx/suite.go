// Package portworx holds nothing of its own: the integration test of the secrets library that
// Portworx uses runs where the Go client put it. It has a module to itself because it pins the Go
// client at v0.5.1, which still calls POST /keys/{id}?action=….
package portworx

import (
	_ "github.com/libopenstorage/secrets/ibm"
	_ "github.com/libopenstorage/secrets/test"
	_ "github.com/pborman/uuid"
	_ "github.com/portworx/kvdb/mem"
	_ "github.com/stretchr/testify/assert"
)
