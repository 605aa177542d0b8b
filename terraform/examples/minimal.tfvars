# The least that must be said. Everything else has a default that keeps data in and people out.
region = "eu-west-1"

release = {
  url    = "s3://my-releases/health-predict-1.0.0.tar.gz"
  sha256 = "0000000000000000000000000000000000000000000000000000000000000000" # sha256sum health-predict-1.0.0.tar.gz
}
