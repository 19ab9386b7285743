module claviger/conformance/bluemix

go 1.24

require github.com/IBM-Cloud/bluemix-go v0.0.0-20240719075425-078fcb3a55be

require golang.org/x/net v0.19.0 // indirect
